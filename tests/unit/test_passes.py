"""The backward passes of a task are those that autograd makes, whoever starts them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, backward_passes, nets, objectives, recipes
from metamtl.aggregators import PCGrad

K = 3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nets.mlp(4, 8, 6, 3)


def episode() -> Episode:
    rng = torch.Generator().manual_seed(0)
    support, query = (
        Batch(torch.randn(2, 6, 4, generator=rng), torch.arange(3).repeat(2, 2)) for _ in range(2)
    )
    return Episode(support, query, task=torch.arange(3).repeat(2, 1))


class Own(adapters.Adapter):
    """K steps of a user's own, by a function that computes the gradient."""

    def __init__(self, gradient: Callable[..., Any], net: Callable[..., Tensor] = functional_call) -> None:
        super().__init__()
        self.gradient, self.net = gradient, net

    def forward(
        self, model: Any, support: Any, loss: Any, *, params: Any = None, task: Any = None
    ) -> dict[str, Tensor]:
        fast = dict(model.named_parameters()) if params is None else dict(params)

        def support_loss(params: dict[str, Tensor]) -> Tensor:
            return loss(self.net(model, params, (support[0],)), support[1])

        for _ in range(K):
            fast = {n: fast[n] - 0.1 * g for n, g in self.gradient(support_loss, fast).items()}
        return fast


def second_order(function: Any, params: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(params, torch.autograd.grad(function(params), [*params.values()], create_graph=True)))


def first_order(function: Any, params: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(params, torch.autograd.grad(function(params), [*params.values()])))


def transformed(function: Any, params: dict[str, Tensor]) -> dict[str, Tensor]:
    return torch.func.grad(function)(params)  # type: ignore[no-any-return]


def by_backward(function: Any, params: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
    function(leaves).backward()
    return {name: leaf.grad for name, leaf in leaves.items()}  # type: ignore[misc]


def written_out(model: nn.Module, params: dict[str, Tensor], inputs: tuple[Tensor]) -> Tensor:
    """The net without a call of a module."""
    (x,), tensors = inputs, [*params.values()]
    for weight, bias in zip(tensors[:-2:2], tensors[1:-2:2]):
        x = (x @ weight.T + bias).relu()
    return x @ tensors[-2].T + tensors[-1]


def gradient(**options: Any) -> Recipe:
    return Recipe(adapters.Gradient(5, 0.1, **options))


ROWS: dict[str, tuple[Callable[[], Recipe], int]] = {
    "joint": (recipes.joint, 1),
    "joint, both sets": (lambda: recipes.joint(objective=objectives.episode_loss), 2),
    "mtl, query alone": (lambda: recipes.mtl(range(3), 6, objective=objectives.query_loss), 1),
    "mtl": (lambda: recipes.mtl(range(3), 6), 2),
    "maml, K=0": (lambda: recipes.maml(0), 1),
    "maml": (lambda: recipes.maml(K), 2 * K + 1),
    "maml, PCGrad": (lambda: recipes.maml(K, aggregator=PCGrad()), 2 * K + 1),
    "fomaml": (lambda: recipes.fomaml(K), K + 1),
    "anil": (lambda: recipes.anil(K), 2 * K + 1),
    "boil": (lambda: recipes.boil(K), 2 * K + 1),
    "meta-sgd": (lambda: recipes.metasgd(model(), K), 2 * K + 1),
    "reptile": (lambda: recipes.reptile(K), K),
    "truncated": (lambda: gradient(differentiation=adapters.Truncated(2)), 5 + 2 + 1),
    # In the backward pass, the inner gradient of every step is computed again.
    "recomputed": (lambda: gradient(differentiation="checkpointed"), 3 * 5 + 1),
    # One gradient at the minimum, and a product with the Hessian for each step of the solver.
    "imaml": (lambda: recipes.imaml(K, solver_steps=4), K + 1 + 4 + 1),
    "protonet": (recipes.protonet, 2),
    "proto-maml": (lambda: Recipe(adapters.Chain(adapters.Prototype(), adapters.Gradient(K))), 2 * K + 2),
    "own, second order": (lambda: Recipe(Own(second_order)), 2 * K + 1),
    "own, first order": (lambda: Recipe(Own(first_order)), K + 1),
    "own, torch.func": (lambda: Recipe(Own(transformed)), 2 * K + 1),
    "own, backward()": (lambda: Recipe(Own(by_backward)), K + 1),
    "own, no module is called": (lambda: Recipe(Own(second_order, written_out)), 2 * K + 1),
    "own, in a chain": (
        lambda: Recipe(
            adapters.Chain(Own(first_order), adapters.Gradient(2, differentiation="first_order"))
        ),
        K + 2 + 1,
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_passes_of_a_task(name: str) -> None:
    make, expected = ROWS[name]
    net, recipe = model(), make()
    assert backward_passes(net, recipe, episode(), F.cross_entropy) == expected
    assert all(param.grad is None for param in (*net.parameters(), *recipe.parameters()))


class Recurrent(nn.Module):
    """A cell that runs four times in one forward pass, and a list of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for _ in range(4):
            x = self.cell(x).tanh()
            outputs.append(self.head(x))
        return outputs


def test_a_module_that_runs_several_times_in_a_pass_counts_once() -> None:
    def loss(outputs: list[Tensor], y: Tensor) -> Tensor:
        return torch.stack([F.cross_entropy(output, y) for output in outputs]).sum()

    net = Recurrent()
    assert backward_passes(net, recipes.maml(2, 0.1), episode(), loss) == 5
    assert backward_passes(net, recipes.joint(), episode(), loss) == 1


def test_named_tasks() -> None:
    net = nets.NamedHeads(nn.Linear(4, 6), 6, {"a": 3, "b": 3})
    query = episode().query
    batch, support = Batch(query.x[0], query.y[0]), Batch(query.x[1], query.y[1])
    episodes = {"a": Episode(None, batch), "b": Episode(support, batch)}
    losses = dict.fromkeys("ab", F.cross_entropy)
    assert backward_passes(net, recipes.maml(2, 0.1), episodes, losses) == {"a": 1, "b": 5}
    assert backward_passes(net, recipes.joint(), {"a": episodes["a"]}, losses) == {"a": 1}


class Draws(nn.Module):
    """Draws from every generator, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm(self.layer(x))) + random.random() + float(np.random.rand())


def test_nothing_changes() -> None:
    net = Draws()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert backward_passes(net, recipes.maml(1, 0.1), episode(), F.cross_entropy) == 3
    assert (random.random(), np.random.rand(), torch.rand(())) == expected
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    hooks = nn.modules.module
    assert not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks


def test_errors_are_those_of_meta_backward() -> None:
    with pytest.raises(ValueError, match="names no parameter"):
        backward_passes(model(), recipes.anil(1, adapts="nose"), episode(), F.cross_entropy)
    with pytest.raises(ValueError, match="depends on no trainable parameter"):
        backward_passes(model(), recipes.joint(), episode(), lambda o, y: F.cross_entropy(o.detach(), y))
    assert not nn.modules.module._global_forward_hooks
