"""Calls before, during and after a change of one thing, under engines that remember.

An engine may remember how to compute, never what: the gradient of a call is that of the objects at the time
of the call. The reference is `Loop` on the changed objects; `test_generated_code.py` holds `Loop` against
plain autograd.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Outcome, Recipe, engines, meta_backward, recipes


@dataclass
class Case:
    """The four objects of a call. A mutation changes one of them, or puts another in its place."""

    model: nn.Module
    recipe: Recipe
    loss: Any
    episode: Episode
    build: Any  # what built it
    outcome: Outcome | None = None  # of the last call

    def gradient(self, engine: engines.Engine) -> dict[str, Tensor | None]:
        params = {
            **dict(self.model.named_parameters()),
            **dict(self.recipe.adapter.named_parameters(prefix="adapter")),
        }
        for param in params.values():
            param.grad = None
        self.outcome = meta_backward(self.model, self.recipe, self.episode, self.loss, engine=engine)
        return {name: None if p.grad is None else p.grad.clone() for name, p in params.items()}


def distance(result: dict[str, Tensor | None], reference: dict[str, Tensor | None]) -> float:
    """Relative, as whole vectors; infinite where other parameters have a gradient."""
    pairs = [(a, b) for a, b in zip(result.values(), reference.values()) if a is not None and b is not None]
    without = [[name for name, g in grads.items() if g is None] for grads in (result, reference)]
    if result.keys() != reference.keys() or without[0] != without[1]:
        return float("inf")
    ours, theirs = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).norm() / theirs.norm())


# (owner of a case, name or key, value), or a function of the case that returns a context
Mutation = tuple[Callable[[Case], Any], Any, Any] | Callable[[Case], AbstractContextManager[Any]]


@contextmanager
def applied(mutation: Mutation | None, case: Case) -> Iterator[None]:
    """Within, the case is changed."""
    if mutation is None:
        yield
        return
    if not isinstance(mutation, tuple):
        with mutation(case):
            yield
        return
    owner, name, value = mutation[0](case), *mutation[1:]
    container = isinstance(owner, (dict, list))
    registries = ("_parameters", "_buffers", "_modules") if isinstance(owner, nn.Module) else ()
    own = (
        container or name in vars(owner) or any(name in getattr(owner, registry) for registry in registries)
    )
    before = owner[name] if container else getattr(owner, name)
    put = partial(operator.setitem if container else setattr, owner, name)
    put(value)
    try:
        yield
    finally:
        if own:
            put(before)
        else:  # an attribute of the instance in front of one of the class
            delattr(owner, name)


def distance_from_loop(case: Case, engine: engines.Engine) -> tuple[float, dict[str, Tensor | None]]:
    """The distance of an engine's gradient from that of `Loop`, and the latter. Reports must agree."""
    reference, plain = case.gradient(engines.Loop()), case.outcome
    result, outcome = case.gradient(engine), case.outcome
    assert plain is not None and outcome is not None
    assert torch.allclose(outcome.losses, plain.losses, rtol=1e-9)
    return distance(result, reference), reference


def check(case: Case, engine: engines.Engine, mutation: Mutation, *, differs: bool = True) -> None:
    """Right before the change, with it, and after it has been taken back.

    `differs` says whether the change alters the gradient. It is checked, so that no row is idle.
    """
    gap, before = distance_from_loop(case, engine)
    assert gap <= 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an engine may say that it falls back
        with applied(mutation, case):
            gap, reference = distance_from_loop(case, engine)
        assert gap <= 1e-9
        assert not differs or distance(before, reference) > 1e-3
        assert distance(case.gradient(engine), before) <= 1e-9


def compiled_auto(case: Case) -> engines.Auto:
    """An `Auto` after it has chosen, for a run of a million steps; at most 60 of them are taken."""
    auto = engines.Auto(steps=10**6)
    for _ in range(60):
        case.gradient(auto)
        if "Compiled" in repr(auto.choices):
            break
    return auto


ENGINES: dict[str, Callable[[Case], engines.Engine]] = {
    "vmap": lambda case: engines.Vmap(),
    "compiled": lambda case: engines.Compiled(),
    "auto": compiled_auto,
}


@pytest.fixture
def guards_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch traces and guards as always, and the graph runs without generated code, which takes long.

    Without a limit, so that every row of a shared engine meets compiled code.
    """
    monkeypatch.setattr("metamtl.engines.kinds.RECOMPILE_LIMIT", 1_000)
    monkeypatch.setattr("metamtl.engines.autotuner.RECOMPILATIONS", 1_000)
    monkeypatch.setattr("metamtl.engines.probe.WHOLE", 0)  # steps by parts, where there are more than two
    with mock.patch("metamtl.engines.kinds.BACKEND", "eager"):
        yield


@pytest.fixture(scope="module")
def benches() -> dict[Any, tuple[Case, engines.Engine]]:
    """Cases with their engine, by setup: rows that take back what they change can share them."""
    return {}


@pytest.fixture
def check_row(benches: Any, build: Any, guards_only: None) -> Callable[..., None]:
    """`check_row(kind, key, setup, mutation)`: rows of one `key` share a case and an engine."""

    def run(kind: str, key: Any, setup: Callable[[Any], Case], mutation: Mutation, **options: Any) -> None:
        if (key, kind) not in benches:
            case = setup(build)
            benches[key, kind] = case, ENGINES[kind](case)
        case, engine = benches.pop((key, kind))
        check(case, engine, mutation, **options)
        benches[key, kind] = case, engine  # a row that fails may leave them in any state

    return run


@pytest.fixture
def check_change() -> Callable[..., None]:
    """`check_change(case, engine, mutation)`, with an engine of the test's own."""
    return check


@pytest.fixture
def changed() -> Callable[..., AbstractContextManager[None]]:
    """`changed(mutation, case)`, a context; without a mutation nothing is changed."""
    return applied


@pytest.fixture
def settled() -> Callable[[Case], engines.Auto]:
    return compiled_auto


@pytest.fixture
def build() -> Callable[..., Case]:
    """`build(model, ...)`: two tasks with three examples each, two numbers to two, one inner step."""

    def case(
        model: nn.Module,
        recipe: Recipe | None = None,
        loss: Any = F.mse_loss,
        x: Callable[[Tensor], Any] = lambda x: x,
        *,
        classes: bool = False,
    ) -> Case:
        rng = torch.Generator().manual_seed(0)
        numbers, targets = (torch.randn(2, 2, 3, 2, generator=rng, dtype=torch.float64) for _ in range(2))
        y = targets.argmax(-1) if classes else targets
        support, query = (Batch(x(numbers[i]), y[i]) for i in range(2))
        recipe = recipes.maml(1, 0.3) if recipe is None else recipe
        recipe.adapter.double()
        ids = torch.tensor([[3, 9], [9, 7]])
        return Case(model.double(), recipe, loss, Episode(support, query, ids), case)

    return case


@pytest.fixture
def gap() -> Callable[..., float]:
    return distance
