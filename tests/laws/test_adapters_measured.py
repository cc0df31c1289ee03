"""What evaluation and every aggregator do with every adapter of `adapter_rows.py`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metamtl import Metric, aggregators, engines, evaluate, meta_backward

from .adapter_rows import ROWS, Case, T, distance, grad_of, make_case

pytestmark = pytest.mark.slow  # a long table


@pytest.fixture(params=ROWS.values(), ids=ROWS)
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap(), engines.Vmap(chunk_size=2)], ids=repr)
def test_reported_losses_are_the_query_losses(case: Case, engine: engines.Engine) -> None:
    outcome = meta_backward(case.model, case.recipe, case.episode, case.loss, engine=engine)
    measured = evaluate(case.model, case.recipe, case.episode, case.loss, engine=engine)
    by_hand = []
    for task in range(T):
        query = case.episode[task].query
        by_hand.append(case.loss(case.predict(case.adapt(task), query.x), query.y).detach())
    assert distance(outcome.losses, torch.stack(by_hand)) <= 1e-12
    assert distance(measured.values, torch.stack(by_hand)) <= 1e-12
    assert outcome.tasks is None and outcome.loss == pytest.approx(measured.mean, rel=1e-12)


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """Objects of earlier test modules are neither collected nor counted."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def histories(frozen: None) -> Callable[[], int]:
    """Counts the tensors with a history that were made since the test began and are alive."""
    gc.collect()
    gc.freeze()
    return lambda: sum(isinstance(t, Tensor) and t.grad_fn is not None for t in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_evaluation_builds_no_graph(
    case: Case, engine: engines.Engine, histories: Callable[[], int]
) -> None:
    kept, seen = case.adapt(0), []
    known = histories()  # those of a call outside of evaluation

    def look(output: Tensor, y: Tensor) -> Tensor:
        seen.append(histories())
        assert not output.requires_grad
        return output.sum(-1)

    metrics = {"look": Metric(look, higher_is_better=True)}
    found = evaluate(case.model, case.recipe, case.episode, case.loss, metrics=metrics, engine=engine)
    assert not found["look"].values.requires_grad
    assert len(seen) == 3  # the first task, the last one, and all of them at once
    assert set(seen) == {known} and histories() == known
    assert known > 0 or all(param.is_leaf for param in kept.values())


class Once(engines.Vmap):
    """Computes the gradients of a case once, for one aggregator after the other."""

    found: engines.TaskGradients | None = None

    def gradients(self, *args: Any) -> engines.TaskGradients:
        self.found = super().gradients(*args) if self.found is None else self.found
        return self.found


def test_aggregators_take_the_rows_of_adaptation(
    case: Case, make: Callable[..., aggregators.Aggregator]
) -> None:
    """`.grad` is its direction; the adapter's parameters get the weighted, or the mean, gradient.

    Two adapters, with and without parameters of their own, meet every aggregator; the others meet one of
    each kind: weights from losses, weights from the Gramian, and no weights.
    """
    engine = Once()
    every = case.row.make in (ROWS["mtl"].make, ROWS["maml, K=1"].make)
    for name in aggregators.names() if every else ("UW", "UPGrad", "TrimmedMean"):
        case.zero()
        recipe = replace(case.recipe, aggregator=make(name, T))
        meta_backward(case.model, recipe, case.episode, case.loss, engine=engine)
        assert engine.found is not None
        rows = torch.cat([part.reshape(T, -1) for part in engine.found.shared.values()], 1)
        expected = make(name, T)(engine.found.losses, rows)
        got = torch.cat([param.grad.flatten() for param in case.model.parameters()])  # type: ignore[union-attr]
        assert torch.equal(got, expected) and bool(got.isfinite().all()), name
        assert bool(got.any()) == bool(rows.any()), name
        for key, param in case.recipe.adapter.named_parameters():
            of_tasks = engine.found.adapter_params[key]
            weights = make(name, T).combine(engine.found.losses, rows).weights
            mean = of_tasks.mean(0) if weights is None else torch.tensordot(weights, of_tasks, 1)
            assert torch.allclose(grad_of(param), mean, rtol=1e-12, atol=1e-14), name
