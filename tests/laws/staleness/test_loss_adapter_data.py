"""Loss, adapter, objective and what stands in x are those of the call, under engines that compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Recipe, adapters, recipes

from .changing import Clipped, Net, Shrink, Trainer, Weighted, WeightedModule, scaled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


def annealed() -> tuple[Callable[..., Tensor], Callable[[float], None]]:
    """A loss with a number in its closure, and what sets it."""
    weight = 0.9

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return scaled(output, y, weight)

    def set_weight(value: float) -> None:
        nonlocal weight
        weight = value

    return loss, set_weight


def weighted_lambda(weight: Any) -> Callable[..., Tensor]:
    return lambda output, y: weight * output.square().mean() + F.mse_loss(output, y)


def closure(build: Any) -> Any:
    loss, set_weight = annealed()
    case = build(Net(), loss=loss)
    case.set_weight = set_weight
    return case


@contextmanager
def reweighted(case: Any) -> Iterator[None]:
    case.set_weight(0.2)
    try:
        yield
    finally:
        case.set_weight(0.9)


def tables(build: Any) -> Any:
    """Two tables of equal repr for the ids 3, 7 and 9."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        case = build(Net(), Recipe(adapters.HeadTable([3, 7, 9], 3)), F.cross_entropy, classes=True)
        case.other = Recipe(adapters.HeadTable([9, 3, 7], 3).double())
    return case


def with_loss(make: Callable[[], Any], **options: Any) -> Any:
    return lambda build: build(Net(), loss=make(), **options)


def with_recipe(make: Callable[[], Any]) -> Any:
    return lambda build: build(Net(), make())


def with_x(x: Callable[[Tensor], Any]) -> Any:
    return lambda build: build(Net(), x=x)


def itself(case: Any) -> Any:
    return case


def loss(case: Any) -> Any:
    return case.loss


def adapter(case: Any) -> Any:
    return case.recipe.adapter


def episode(x: Callable[[Tensor], Any]) -> Any:
    """The episode with another x, made of the same numbers."""

    def mutation(case: Any) -> Any:
        other = with_x(x)(case.build).episode
        return replaced(case, "episode", other)

    return mutation


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def objective(scale: float) -> Any:
    return lambda task: task.query_loss + scale * sum(p.square().sum() for p in task.end.values())


def two(x: Tensor) -> dict[str, Tensor]:
    return {"x": x, "second": torch.sin(3 * x)}


ROWS: dict[str, tuple[Any, Any]] = {
    "number in a closure": (closure, reweighted),
    "attribute of a loss": (with_loss(Weighted), (loss, "beta", 0.2)),
    "attribute behind a bound method": (
        with_loss(lambda: Trainer().criterion),
        (lambda case: case.loss.__self__, "beta", 0.2),
    ),
    "buffer of a loss module": (
        with_loss(WeightedModule),
        (loss, "scale", torch.tensor([0.2, 2.0], dtype=torch.float64)),
    ),
    "option of a loss module": (with_loss(lambda: nn.HuberLoss(delta=0.5)), (loss, "delta", 0.2)),
    "class weights": (
        with_loss(lambda: nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]).double()), classes=True),
        (loss, "weight", torch.tensor([5.0, 1.0]).double()),
    ),
    "class weights set": (
        with_loss(nn.CrossEntropyLoss, classes=True),
        (loss, "weight", torch.tensor([5.0, 1.0]).double()),
    ),
    "label smoothing": (with_loss(nn.CrossEntropyLoss, classes=True), (loss, "label_smoothing", 0.3)),
    "another partial": (
        with_loss(lambda: partial(scaled, scale=0.9)),
        (itself, "loss", partial(scaled, scale=0.2)),
    ),
    "another lambda of the same code": (
        with_loss(lambda: weighted_lambda(0.9)),
        (itself, "loss", weighted_lambda(0.2)),
    ),
    "another tensor in a lambda": (
        with_loss(lambda: weighted_lambda(torch.tensor(0.9).double())),
        (itself, "loss", weighted_lambda(torch.tensor(0.2).double())),
    ),
    "another loss": (with_loss(lambda: F.mse_loss), (itself, "loss", nn.SmoothL1Loss(beta=0.3))),
    "a table with its ids in another order": (
        tables,
        lambda case: replaced(case, "recipe", case.other),
    ),
    "attribute of a user's adapter": (with_recipe(lambda: Recipe(Shrink())), (adapter, "factor", 0.4)),
    "attribute of a user's rule": (
        with_recipe(lambda: recipes.maml(1, 0.5, rule=Clipped())),
        (lambda case: case.recipe.adapter.rule, "factor", 0.3),
    ),
    "learning rate, another recipe": (
        with_recipe(lambda: recipes.maml(1, 0.3)),
        (itself, "recipe", recipes.maml(1, 0.05)),
    ),
    "learning rate, attribute": (
        with_recipe(lambda: recipes.maml(1, 0.3)),
        (adapter, "lr", adapters.Gradient(1, 0.05).lr),
    ),
    "order of differentiation": (
        with_recipe(lambda: recipes.maml(1, 0.5)),
        (itself, "recipe", recipes.fomaml(1, 0.5)),
    ),
    "what is adapted": (
        with_recipe(lambda: recipes.maml(1, 0.5)),
        (itself, "recipe", recipes.maml(1, 0.5, adapts="head")),
    ),
    "learned rate": (
        lambda build: build(net := Net().double(), recipes.lslr(net, 1, 0.3)),
        lambda case: replaced(next(case.recipe.adapter.parameters()), "data", torch.tensor([0.9]).double()),
    ),
    "another objective": (
        with_recipe(lambda: recipes.maml(1, 0.3, objective=objective(0.1))),
        (itself, "recipe", recipes.maml(1, 0.3, objective=objective(0.5))),
    ),
    "number in x": (with_x(lambda x: (x, 2.0)), episode(lambda x: (x, 0.5))),
    "string in x": (with_x(lambda x: (x, 2.0, "sin")), episode(lambda x: (x, 2.0, "cos"))),
    "another key of x": (with_x(two), episode(lambda x: {"x": x, "third": torch.sin(3 * x)})),
    "keys of x in another order": (with_x(two), episode(lambda x: dict(reversed(two(x).items())))),
}
SAME = {"keys of x in another order"}  # rows whose gradient does not change


# A recompilation takes two seconds, so engines that compile run those rows that differ most.
AUTO = [
    "number in a closure",
    "attribute of a loss",
    "class weights",
    "another tensor in a lambda",
    "a table with its ids in another order",
    "attribute of a user's adapter",
    "learning rate, another recipe",
    "another objective",
    "number in x",
]
COMPILED = [
    *AUTO,
    "attribute behind a bound method",
    "order of differentiation",
    "another lambda of the same code",
    "another key of x",
]
RUNS = [
    *(("vmap", name) for name in ROWS),
    *(("compiled", name) for name in COMPILED),
    *(("auto", name) for name in AUTO),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_a_change_between_two_calls(kind: str, name: str, check_row: Any) -> None:
    setup, mutation = ROWS[name]
    check_row(kind, name, setup, mutation, differs=name not in SAME)
