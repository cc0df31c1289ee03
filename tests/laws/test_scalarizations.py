"""A method that weights losses is the gradient of its weighted loss, for every parameter, heads included.

The reference is TorchJD's scalarizer of the same name and plain `backward()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchjd import scalarization

from metamtl import Batch, Episode, Recipe, adapters, aggregators, meta_backward, nets, recipes

WEIGHTS = torch.tensor([1.0, 0.5], dtype=torch.float64)
# The aggregator and the scalarizer of two tasks.
METHODS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "Mean": (aggregators.Mean, scalarization.Mean),
    "Constant": (lambda: aggregators.Constant(weights=WEIGHTS), lambda: scalarization.Constant(WEIGHTS)),
    "UW": (lambda: aggregators.UW(2), lambda: scalarization.UW(2)),
    "IMTLL": (lambda: aggregators.IMTLL(2), lambda: scalarization.IMTLL(2)),
    "DWA": (lambda: aggregators.DWA(calls_per_epoch=1), scalarization.DWA),
    "FAMO": (lambda: aggregators.FAMO(2), lambda: scalarization.FAMO(2)),
    "GeometricMean": (aggregators.GeometricMean, scalarization.GeometricMean),
    "STCH": (lambda: aggregators.STCH(mu=0.1), lambda: scalarization.STCH(0.1)),
}
LOSSES: dict[str, Any] = {"a": F.mse_loss, "b": F.cross_entropy, "c": F.mse_loss}
methods = pytest.mark.parametrize("name", METHODS)


def network() -> nn.Module:
    """A smooth body and three linear heads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        return nets.NamedHeads(body, 4, {"a": 2, "b": 3, "c": 1}).double()


def batches(step: int, names: str = "ab", *, one_input: bool = True) -> dict[str, Episode]:
    """The tasks, in the order of `names`."""
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    y = {
        "a": torch.randn(6, 2, generator=rng, dtype=torch.float64),
        "b": torch.randint(3, (6,), generator=rng),
        "c": torch.randn(6, 1, generator=rng, dtype=torch.float64),
    }
    return {name: Episode(None, Batch(x if one_input else x.clone(), y[name])) for name in names}


class Reference:
    """Plain joint training with TorchJD's scalarizer."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.model, self.scalarizer, self.calls = deepcopy(model), METHODS[name][1]().double(), 0

    def backward(self, episodes: dict[str, Episode]) -> None:
        losses = torch.stack(
            [LOSSES[t](self.model(e.query.x, task=t), e.query.y) for t, e in episodes.items()]
        )
        if isinstance(self.scalarizer, scalarization.FAMO) and self.calls:
            self.scalarizer.update(losses)
        self.scalarizer(losses).backward()
        if isinstance(self.scalarizer, scalarization.DWA):
            self.scalarizer.step()
        self.calls += 1

    def parameters(self) -> list[Tensor]:
        learned = [] if isinstance(self.scalarizer, scalarization.FAMO) else self.scalarizer.parameters()
        return [*self.model.parameters(), *learned]


def assert_close(result: Any, reference: Any) -> None:
    ours, theirs = (torch.cat([t.detach().flatten() for t in part]) for part in (result, reference))
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-10


@methods
@pytest.mark.parametrize(("at", "one_input"), [(None, True), (None, False), ("body", True)])
def test_the_gradient_of_every_parameter(name: str, at: str | None, one_input: bool) -> None:
    model = network()
    reference, recipe = (
        Reference(name, model),
        recipes.joint(aggregator=METHODS[name][0]().double(), layer=at),
    )
    for step in range(3):  # the third is the first in which all weights have moved
        params = [*model.parameters(), *recipe.aggregator.parameters()]
        for param in [*params, *reference.parameters()]:
            param.grad = None
        episodes = batches(step, one_input=one_input)
        meta_backward(model, recipe, episodes, LOSSES)
        reference.backward(episodes)
        used = [(p, q) for p, q in zip(params, reference.parameters()) if q.grad is not None]
        assert len(used) >= 6  # the body, and both heads
        assert all(p.grad is not None for p, _ in used)
        assert_close([p.grad for p, _ in used], [q.grad for _, q in used])


@methods
def test_training_is_plain_joint_training(name: str) -> None:
    model = network()
    reference, recipe = Reference(name, model), recipes.joint(aggregator=METHODS[name][0]().double())
    learned = [] if name == "FAMO" else [*recipe.aggregator.parameters()]  # FAMO has its own Adam
    params = [*model.parameters(), *learned]
    ours, theirs = torch.optim.SGD(params, 0.1), torch.optim.SGD(reference.parameters(), 0.1)
    for step in range(20):
        for optimizer, backward in (
            (ours, lambda episodes: meta_backward(model, recipe, episodes, LOSSES)),
            (theirs, reference.backward),
        ):
            optimizer.zero_grad()
            backward(batches(step))
            optimizer.step()
    assert_close(params, reference.parameters())


@pytest.mark.parametrize("name", ["Mean", "Constant", "UW", "IMTLL", "STCH", "GeometricMean"])
def test_the_heads_of_a_table(name: str) -> None:
    """What the adapter owns is weighted too, for a meta-batch of two tasks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential()
        model.body, model.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 1)
        table = adapters.HeadTable([0, 1, 2], 4).double()
    model.double()
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 5, n, generator=rng, dtype=torch.float64) for n in (3, 1))
    recipe = Recipe(table, METHODS[name][0]().double())
    meta_backward(model, recipe, Episode(None, Batch(x, y), torch.tensor([[2], [0]])), F.mse_loss)
    weight, bias = (p.detach().clone().requires_grad_() for p in (table.weight, table.bias))
    body = deepcopy(model.body)
    losses = [
        F.mse_loss(F.linear(body(x[t]), weight[i : i + 1], bias[i : i + 1]), y[t])
        for t, i in enumerate((2, 0))
    ]
    body.zero_grad()
    METHODS[name][1]().double()(torch.stack(losses)).backward()
    assert_close([table.weight.grad, table.bias.grad], [weight.grad, bias.grad])
    assert_close([p.grad for p in model.body.parameters()], [p.grad for p in body.parameters()])


WITH_MEMORY: dict[str, Callable[[int], Any]] = {
    "UW": aggregators.UW,
    "IMTLL": aggregators.IMTLL,
    "DWA": lambda tasks: aggregators.DWA(calls_per_epoch=1),
    "FAMO": aggregators.FAMO,
    "GradNorm": lambda tasks: aggregators.GradNorm(),
    "AdaTask": lambda tasks: aggregators.AdaTask(),
    "DBMTL": lambda tasks: aggregators.DBMTL(),
    "LossAscent": lambda tasks: aggregators.LossAscent(),
    "ExcessMTL": lambda tasks: aggregators.ExcessMTL(),
}


def trained(name: str, orders: list[str]) -> Sequence[Tensor]:
    """The parameters after ten steps, the tasks in one order after another."""
    model, recipe = network(), recipes.joint(aggregator=WITH_MEMORY[name](2).double())
    learned = [] if name == "FAMO" else [*recipe.aggregator.parameters()]
    params = [*model.parameters(), *learned]
    optimizer = torch.optim.SGD(params, 0.02)
    for step in range(10):
        optimizer.zero_grad()
        meta_backward(model, recipe, batches(step, orders[step % len(orders)]), LOSSES)
        optimizer.step()
    return params


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_memory_follows_names(name: str) -> None:
    fixed, turning = trained(name, ["ab"]), trained(name, ["ab", "ba", "ba"])
    model_size = sum(1 for _ in network().parameters())
    assert_close(turning[:model_size], fixed[:model_size])
    assert_close(turning, fixed)


@pytest.mark.parametrize("name", [*WITH_MEMORY, "GradVac", "MoDo", "SDMGrad"])
@pytest.mark.parametrize(("first", "then"), [("ab", "ac"), ("abc", "ab"), ("ab", "abc")])
def test_other_tasks_are_an_error_that_names_them(name: str, first: str, then: str) -> None:
    model = network()
    make = WITH_MEMORY.get(name, lambda tasks: getattr(aggregators, name)())
    recipe = recipes.joint(aggregator=make(len(first)).double())
    for step in range(2):
        meta_backward(model, recipe, batches(step, first), LOSSES)
    model.zero_grad()
    with pytest.raises(ValueError) as error:
        meta_backward(model, recipe, batches(2, then), LOSSES)
    for words, tasks in (("without", set(first) - set(then)), ("with the unknown", set(then) - set(first))):
        assert all(f"{words} {task}" in str(error.value) for task in tasks)
    assert all(param.grad is None for param in model.parameters())
