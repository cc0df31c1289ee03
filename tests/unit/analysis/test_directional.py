"""Directional derivatives in forward mode are inner products of gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, analysis, engines, recipes

WAYS: dict[str, tuple[Any, str]] = {
    "joint": (recipes.joint(), "forward"),
    "exact": (recipes.maml(steps=3, lr=0.1), "forward"),
    "checkpointed": (recipes.maml(steps=3, lr=0.1, differentiation="checkpointed"), "forward"),
    "first_order": (recipes.fomaml(steps=3, lr=0.1), "forward"),
    "truncated": (recipes.maml(steps=3, lr=0.1, differentiation="truncated"), "forward"),
    "implicit": (recipes.imaml(steps=3, lr=0.1), "reverse"),
    "reptile": (recipes.reptile(steps=3, lr=0.1), "forward"),
    "anil": (recipes.anil(steps=2, lr=0.1, adapts="4"), "forward"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_matrix_is_minus_the_gramian(batch: SimpleNamespace, way: str) -> None:
    recipe, mode = WAYS[way]
    args = batch.args(recipe)
    grads = analysis.gradients(*args)
    derivatives = analysis.directional_derivatives(*args, grads)
    assert derivatives.mode == mode and derivatives.tasks == derivatives.directions == grads.tasks
    torch.testing.assert_close(derivatives.matrix, -grads.gramian(), rtol=1e-10, atol=1e-12)


def test_named_tasks(named: SimpleNamespace) -> None:
    grads = analysis.gradients(*named.args)
    derivatives = analysis.directional_derivatives(*named.args, grads)
    torch.testing.assert_close(derivatives.matrix, -grads.gramian(), rtol=1e-10, atol=1e-12)
    head = {"head": {"heads.a.bias": torch.ones(3).double()}}
    row = analysis.directional_derivatives(*named.args, head).matrix[0]
    assert row[1] == row[2] == 0


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
        self.gru, self.head = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.layer(x))[0][:, -1])


def test_attention_recurrence_and_dropout() -> None:
    model = Attention().double()
    x, y = torch.randn(2, 6, 5, 4).double(), torch.randint(3, (2, 6))
    args = (model, recipes.maml(steps=1, lr=0.1), Episode(Batch(x, y), Batch(-x, y)), F.cross_entropy)
    up = {"up": {name: torch.randn_like(p) for name, p in model.named_parameters()}}
    state = torch.get_rng_state()
    first, again = (analysis.directional_derivatives(*args, up).matrix for _ in range(2))
    assert torch.equal(first, again) and torch.equal(state, torch.get_rng_state())
    model.eval()
    grads = analysis.gradients(*args)
    derivatives = analysis.directional_derivatives(*args, grads)
    torch.testing.assert_close(derivatives.matrix, -grads.gramian(), rtol=1e-10, atol=1e-12)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 2 * ctx.saved_tensors[0] * g


def test_a_function_without_forward_mode(batch: SimpleNamespace) -> None:
    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return Square.apply(output - y).mean()

    args = (batch.model, recipes.joint(), batch.episodes, loss)
    grads = analysis.gradients(*args, engine=engines.Loop())
    derivatives = analysis.directional_derivatives(*args, grads)
    assert derivatives.mode == "reverse"
    torch.testing.assert_close(derivatives.matrix, -grads.gramian(), rtol=1e-10, atol=1e-12)


def test_bad_directions(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.joint())
    bias = torch.ones(2).double()
    for directions, error, words in (
        ({}, TypeError, "without an entry"),
        ({"d": bias}, TypeError, "dict from parameter names"),
        ({"d": {}}, ValueError, "is empty"),
        ({"d": {"bias": bias}}, ValueError, "no trainable parameter"),
        ({"d": {"4.bias": torch.ones(3)}}, ValueError, r"shape \[3\]"),
        ({"d": {"4.bias": bias * torch.nan}}, ValueError, "not finite"),
    ):
        with pytest.raises(error, match=words):
            analysis.directional_derivatives(*args, directions)
    with pytest.raises(ValueError, match="argmax"):
        analysis.directional_derivatives(
            batch.model,
            recipes.joint(),
            batch.episodes,
            lambda o, y: o.detach().mean(),
            {"d": {"4.bias": bias}},
        )
