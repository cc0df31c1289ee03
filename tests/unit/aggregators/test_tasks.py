"""State belongs to tasks by their names, and an error leaves it unchanged."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd import aggregation, scalarization

from metamtl import Recipe, adapters, aggregators, recipes, rules
from metamtl.aggregators import Aggregator

NAMES = ("a", "b", "c")
PER_TASK: dict[str, Callable[[], Aggregator]] = {
    "AdaTask": aggregators.AdaTask,
    "AutoLambda": lambda: aggregators.AutoLambda(0.1, every=100),
    "COSMOS": lambda: aggregators.COSMOS(0.1, torch.tensor([1.0, 2.0, 3.0])),
    "Constant": lambda: aggregators.Constant([1.0, 2.0, 3.0]),
    "Constant by name": lambda: aggregators.Constant({"a": 1.0, "b": 2.0, "c": 3.0}),
    "DBMTL": aggregators.DBMTL,
    "DWA": lambda: aggregators.DWA(1),
    "ExcessMTL": lambda: aggregators.ExcessMTL(),
    "FAMO": lambda: aggregators.FAMO(3),
    "GradNorm": aggregators.GradNorm,
    "GradVac": lambda: aggregators.GradVac(),
    "IMTLL": lambda: aggregators.IMTLL(3),
    "LossAscent": lambda: aggregators.LossAscent(0.1),
    "MoDo": lambda: aggregators.MoDo(),
    "PBI": lambda: aggregators.PBI(1.0, torch.tensor([1.0, 2.0, 3.0])),
    "PCD": lambda: aggregators.PCD(),
    "RawLossAscent": lambda: aggregators.RawLossAscent(0.1),
    "Rescaled": lambda: aggregators.Rescaled(aggregators.GradNorm()),
    "SDMGrad": lambda: aggregators.SDMGrad(),
    "UPGrad": lambda: aggregators.UPGrad(pref_vector=torch.tensor([1.0, 2.0, 3.0])),
    "UW": lambda: aggregators.UW(3),
}
STATELESS = ("Mean", "Sum", "Random", "GeometricMean", "MGDA", "PCGrad", "UPGrad", "IMTLG")


def batch(call: int, num_tasks: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(call)
    losses = torch.rand(num_tasks, generator=rng, dtype=torch.float64) + 0.5
    return losses, torch.randn(num_tasks, 5, generator=rng, dtype=torch.float64)


def learn(aggregator: Aggregator) -> None:
    """One step of an optimizer that has the aggregator's parameters."""
    for param in aggregator.parameters():
        if param.grad is not None:
            with torch.no_grad():
                param -= 0.1 * param.grad
            param.grad = None


@pytest.mark.parametrize("name", PER_TASK)
@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]])
def test_the_order_of_the_tasks_does_not_matter(name: str, order: list[int]) -> None:
    first, second = PER_TASK[name](), PER_TASK[name]()
    for call in range(4):
        losses, rows = batch(call)
        expected = first.combine(losses, rows, NAMES)
        moved = order if call else [0, 1, 2]
        result = second.combine(losses[moved], rows[moved], [NAMES[i] for i in moved])
        assert torch.equal(result.direction, expected.direction)
        if expected.weights is not None:
            assert torch.equal(result.weights, expected.weights[moved])
        learn(first)
        learn(second)


@pytest.mark.parametrize("name", PER_TASK)
def test_other_tasks_are_an_error_that_names_them(name: str) -> None:
    aggregator = PER_TASK[name]()
    aggregator.combine(*batch(0), NAMES)
    saved = copy.deepcopy(aggregator.state_dict())
    for tasks, words in (
        (("a", "c"), r"a, b, c; this batch has a, c: without b"),
        (("a", "b", "d"), r"without c and with the unknown d"),
        (("a", "b", "c", "d"), r"with the unknown d"),
        (None, r"state for the tasks a, b, c; this batch has a meta-batch of tasks without names"),
    ):
        with pytest.raises(ValueError, match=words):
            aggregator.combine(*batch(1, len(tasks or NAMES)), tasks)
    with pytest.raises(ValueError, match="for 3 tasks; this batch has 2"):
        aggregator.combine(*batch(1, 2))
    assert equal(saved, aggregator.state_dict())


@pytest.mark.parametrize("name", sorted(set(PER_TASK) - {"Constant by name"}))
def test_a_meta_batch_keeps_its_number_of_tasks(name: str) -> None:
    aggregator = PER_TASK[name]()
    aggregator.combine(*batch(0))
    aggregator.combine(*batch(1))
    with pytest.raises(ValueError, match="for 3 tasks; this batch has 4"):
        aggregator.combine(*batch(2, 4))
    with pytest.raises(ValueError, match="state for tasks without names; this batch has the tasks a, b, c"):
        aggregator.combine(*batch(2), NAMES)


@pytest.mark.parametrize("name", sorted(set(PER_TASK) - {"Rescaled"}))
def test_a_direct_call_keeps_its_number_of_tasks(name: str) -> None:
    aggregator = PER_TASK[name]()
    aggregator(*batch(0))
    with pytest.raises(ValueError, match="for 3 tasks; this batch has 2"):
        aggregator(*batch(1, 2))


@pytest.mark.parametrize("name", STATELESS)
def test_without_state_any_tasks_will_do(name: str) -> None:
    aggregator = getattr(aggregators, name)()
    for tasks in (NAMES, ("x", "y"), None):
        aggregator.combine(*batch(0, len(tasks or NAMES)), tasks)
    assert aggregator.tasks is None and aggregator.num_tasks is None


@pytest.mark.parametrize("name", PER_TASK)
def test_the_names_are_part_of_the_state_dict(name: str) -> None:
    first, second = PER_TASK[name](), PER_TASK[name]()
    first.combine(*batch(0), NAMES)
    second.load_state_dict(first.state_dict())
    losses, rows = batch(1)
    expected = first.combine(losses, rows, NAMES).direction
    assert torch.equal(second.combine(losses.flip(0), rows.flip(0), NAMES[::-1]).direction, expected)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return a == b


@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("name", [*PER_TASK, "PCGrad"])
def test_an_error_restores_the_state(name: str, calls: int) -> None:
    """Buffers, parameters and their `.grad`, names, and the numbers of calls."""
    aggregator = PER_TASK[name]() if name in PER_TASK else aggregators.PCGrad()
    for call in range(calls):
        aggregator.combine(*batch(call), NAMES)
    other = copy.deepcopy(aggregator)
    saved = copy.deepcopy(aggregator.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in aggregator.parameters()]
    with pytest.raises(RuntimeError, match="later check"), aggregator.restored_on_error():
        aggregator.combine(*batch(7), NAMES)
        raise RuntimeError("later check")
    assert equal(saved, aggregator.state_dict())
    for param, grad in zip(aggregator.parameters(), grads):
        assert (param.grad is None) == (grad is None)
        assert grad is None or torch.equal(param.grad, grad)
    for call in (8, 9):
        expected = other.combine(*batch(call), NAMES).direction
        assert torch.equal(aggregator.combine(*batch(call), NAMES).direction, expected)


def test_a_look_ahead_restores_the_weights_that_it_moves() -> None:
    weights = aggregators.AutoLambda(0.1)
    weights.combine(*batch(0), NAMES)
    judge, saved = weights.look_ahead(), copy.deepcopy(weights.state_dict())
    with pytest.raises(RuntimeError, match="later check"), judge.restored_on_error():
        judge.combine(*batch(1), NAMES)
        raise RuntimeError("later check")
    assert equal(saved, weights.state_dict())


def test_a_look_ahead_takes_tasks_by_name() -> None:
    weights = aggregators.AutoLambda(0.1)
    losses, rows = batch(0)
    weights.combine(losses, rows, NAMES)
    result = weights.look_ahead(["c"]).combine(losses.flip(0), rows.flip(0), NAMES[::-1])
    assert torch.equal(result.direction, rows[2])
    weights.combine(losses, rows, NAMES)
    with pytest.raises(ValueError, match="has no task 'd'; its tasks are a, b, c"):
        weights.look_ahead(["d"]).combine(losses, rows, NAMES)


def test_famo_takes_the_next_losses_by_name() -> None:
    first, second = aggregators.FAMO(3), aggregators.FAMO(3)
    after = torch.tensor([0.5, 1.0, 0.7], dtype=torch.float64)
    for famo in (first, second):
        famo.combine(*batch(0), NAMES)
    first.update(after)
    second.update(after.flip(0), NAMES[::-1])
    assert torch.equal(first(*batch(1)), second(*batch(1)))


def test_weights_by_name() -> None:
    constant = aggregators.Constant({"a": 1.0, "b": 0.5})
    losses, rows = torch.ones(2), torch.eye(2)
    assert torch.equal(constant.combine(losses, rows, ("b", "a")).weights, torch.tensor([0.5, 1.0]))
    with pytest.raises(
        ValueError, match="tasks a, b; this batch has a, c: without b and with the unknown c"
    ):
        constant.combine(losses, rows, ("a", "c"))
    positional = aggregators.Constant(torch.ones(3))
    with pytest.raises(ValueError, match=r"for 3 tasks; this batch has 2 \(a, b\)"):
        positional.combine(losses, rows, ("a", "b"))
    with pytest.raises(ValueError, match=r"weights has shape \[2, 2\]"):
        aggregators.Constant(torch.ones(2, 2))


def test_classes_of_torchjds_methods() -> None:
    mgda = aggregators.MGDA(max_iters=7)
    assert isinstance(mgda, aggregators.MGDA) and isinstance(mgda, aggregators.TorchJD)
    assert not isinstance(mgda, aggregators.CAGrad) and aggregators.MGDA is aggregators.MGDA
    assert "CAGrad" in dir(aggregators) and "c: float" in str(aggregators.CAGrad.__signature__)
    with pytest.raises(TypeError, match=r"aggregators.CAGrad.*missing a required argument: 'c'"):
        aggregators.CAGrad()
    with pytest.raises(TypeError, match=r"aggregators.MGDA.*unexpected keyword argument 'seed'"):
        aggregators.MGDA(seed=1)


def test_a_recipe_has_the_parameters_of_its_parts() -> None:
    adapter = adapters.Gradient(1, 0.1, rule=rules.SGD(momentum=nn.Parameter(torch.tensor(0.9))))
    recipe = Recipe(adapter, aggregators.UW(2))
    names = ["adapter.rule.momentum", "aggregator.inner.log_var"]
    assert [name for name, _ in recipe.named_parameters()] == names
    assert list(recipe.parameters()) == [adapter.rule.momentum, recipe.aggregator.inner.log_var]
    recipe.aggregator.combine(torch.ones(2), torch.eye(2), ("a", "b"))
    with torch.no_grad():
        recipe.aggregator.inner.log_var.fill_(0.5)
    for other in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert equal(other.state_dict(), recipe.state_dict()) and other.objective is recipe.objective
    fresh = Recipe(
        adapters.Gradient(1, 0.1, rule=rules.SGD(momentum=nn.Parameter(torch.tensor(0.1)))),
        aggregators.UW(2),
    )
    fresh.load_state_dict(recipe.state_dict())
    assert equal(fresh.state_dict(), recipe.state_dict()) and fresh.aggregator.tasks == ("a", "b")
    assert recipe.to(torch.float64) is recipe
    assert {param.dtype for param in recipe.parameters()} == {torch.float64}


def test_parts_of_torchjd_are_wrapped() -> None:
    recipe = recipes.joint(aggregator=aggregation.UPGrad())
    assert isinstance(recipe.aggregator, aggregators.TorchJD) and recipe.aggregator.name == "UPGrad"
    losses, rows = batch(0)
    assert torch.equal(recipe.aggregator(losses, rows), aggregators.UPGrad()(losses, rows))
    recipe = recipes.joint(aggregator=scalarization.UW(3))
    assert isinstance(recipe.aggregator, aggregators.Scalarized) and recipe.aggregator.num_tasks == 3
    with pytest.raises(ValueError, match=r"pass metamtl.aggregators.DWA\(...\)"):
        recipes.joint(aggregator=scalarization.DWA())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Recipe("maml"), "adapter='maml' is not an adapter; pass one of metamtl.adapters"),
        (lambda: Recipe(adapters.Shared), r"pass an instance, Shared\(...\)"),
        (lambda: recipes.joint(aggregator="UPGrad"), r"not an aggregator; pass aggregators.UPGrad\(\)"),
        (lambda: recipes.joint(aggregator="Median"), "not an aggregator; there are AdaTask"),
        (lambda: recipes.joint(aggregator=aggregators.UPGrad), r"pass an instance, UPGrad\(...\)"),
        (lambda: recipes.joint(aggregator=nn.Linear(2, 2)), "subclass metamtl.aggregators.Aggregator"),
        (lambda: recipes.joint(objective=3), "objective=3 is not callable"),
        (lambda: recipes.joint(layer=3), "layer=3 is not the name of a module"),
    ],
)
def test_parts_of_the_wrong_kind(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        build()
