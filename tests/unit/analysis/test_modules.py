"""Derivatives of many modules, through an inner loop, against central differences of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, analysis, recipes
from metamtl.analysis.derivatives import hessian_product, objective_derivative
from metamtl.analysis.functions import TaskFunctions


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(x)


def on_vectors(*layers: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(20, 8), *layers, nn.Linear(width, 3))


def on_images(*layers: nn.Module) -> nn.Module:
    body = nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Tanh())
    return nn.Sequential(body, nn.Flatten(), nn.Linear(4 * 5 * 4, 3))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: on_vectors(nn.Tanh()),
    "relu": lambda: on_vectors(nn.ReLU()),
    "gelu, dropout": lambda: on_vectors(nn.GELU(), nn.Dropout(0.3)),
    "layer norm": lambda: on_vectors(nn.LayerNorm(8), nn.Tanh()),
    "group norm": lambda: on_images(nn.GroupNorm(2, 4)),
    "batch norm": lambda: on_images(nn.BatchNorm2d(4)),
    "instance norm": lambda: on_images(nn.InstanceNorm2d(4, affine=True)),
    "weight norm": lambda: on_vectors(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh()),
    "custom function": lambda: on_vectors(Squares()),
    "lstm": lambda: nn.Sequential(Last(nn.LSTM(4, 5, batch_first=True)), nn.Linear(5, 3)),
    "gru": lambda: nn.Sequential(Last(nn.GRU(4, 5, batch_first=True)), nn.Linear(5, 3)),
    "transformer": lambda: nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(20, 3)
    ),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("recipe", [recipes.joint(), recipes.maml(steps=1, lr=0.1)], ids=["joint", "maml"])
def test_hessian_products(name: str, recipe: Any) -> None:
    model = MODULES[name]().double()
    x, y = torch.randn(1, 6, 5, 4).double(), torch.randint(3, (1, 6))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tasks = TaskFunctions.of(model, recipe, Episode(Batch(x, y), Batch(-x, y)), F.cross_entropy, order=2)
    direction = {n: torch.randn_like(p) / p.numel() ** 0.5 for n, p in tasks.params.items()}
    product = hessian_product(tasks, 0, tuple(tasks.params))(direction)
    step = 1e-5
    ends = [
        tasks.gradient(0, {n: p + sign * step * direction[n] for n, p in tasks.params.items()})
        for sign in (1, -1)
    ]
    expected = torch.cat([((ends[0][n] - ends[1][n]) / (2 * step)).flatten() for n in product])
    error = torch.cat([p.flatten() for p in product.values()]) - expected
    assert float(error.norm() / expected.norm()) < 1e-6
    if name != "custom function":
        slope = sum(float((g * direction[n]).sum()) for n, g in tasks.gradient(0, tasks.params).items())
        assert float(objective_derivative(tasks, 0, direction)) == pytest.approx(slope, rel=1e-9)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_linear_objective_has_no_curvature() -> None:
    x = torch.randn(2, 6, 3).double()
    args = (nn.Linear(3, 1).double(), recipes.joint(), Episode(None, Batch(x, x[..., :1])))
    second = analysis.mixed_second_derivatives(*args, lambda output, y: (output * y).mean())
    assert float(second.matrix.abs().max()) == 0
