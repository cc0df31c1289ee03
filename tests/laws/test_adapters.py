"""What every adapter obeys. A new adapter joins by one row in `ROWS` of `adapter_rows.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from metamtl import adapters, engines, evaluate, meta_backward, recipes

from ..central_differences import check_gradient
from .adapter_rows import COMPILED, FEATURES, ROWS, Case, Row, distance, grad_of, make_case

pytestmark = pytest.mark.slow  # a long table


@pytest.fixture(params=ROWS.values(), ids=ROWS)
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.fixture(
    params=[row for row in ROWS.values() if row.exact], ids=[n for n, r in ROWS.items() if r.exact]
)
def exact(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


def state(module: nn.Module) -> dict[str, Any]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: (t.detach().clone(), t.requires_grad, t.data_ptr()) for name, t in tensors}


def same_state(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(found.values(), expected.values())
    )


@pytest.mark.parametrize("engine", [engines.Vmap(), engines.Vmap(chunk_size=2), engines.Vmap(1)], ids=repr)
def test_engines_agree(case: Case, engine: engines.Engine) -> None:
    shared = {n: p for n, p in case.model.named_parameters()}
    own = {n: p for n, p in case.recipe.adapter.named_parameters()}
    problem = engines.TaskProblem.of(
        case.model, case.recipe.adapter, case.recipe.objective, case.loss, case.episode
    )
    data = (case.episode.support, case.episode.query, case.episode.task)
    loop = engines.Loop().gradients(problem, shared, own, data)
    grads = engine.gradients(problem, shared, own, data)
    assert distance(grads.losses, loop.losses) <= 1e-12
    assert loop.shared.keys() == grads.shared.keys()
    assert loop.adapter_params.keys() == grads.adapter_params.keys() == own.keys()
    pairs = ((loop.shared, grads.shared), (loop.adapter_params, grads.adapter_params))
    for theirs, ours in pairs:
        if theirs:
            flat = [torch.cat([rows[name].flatten() for name in theirs]) for rows in (ours, theirs)]
            assert distance(*flat) <= 1e-12
    tensors = [grads.losses, *grads.shared.values(), *grads.adapter_params.values()]
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("row", COMPILED.values(), ids=COMPILED)
def test_the_compiled_engine_agrees(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch traces and guards as always, and runs the graph itself."""
    monkeypatch.setattr("metamtl.engines.kinds.BACKEND", "eager")
    case, engine = make_case(row), engines.Compiled()
    assert distance(case.gradient(engine), case.gradient(engines.Loop())) <= 1e-10
    assert engine.compilations == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r2d2", "relation", "tim"])  # each predicts in another way
def test_compiled_evaluation_agrees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metamtl.engines.kinds.BACKEND", "eager")
    case, engine = make_case(COMPILED[name]), engines.Compiled()
    found = evaluate(case.model, case.recipe, case.episode, case.loss, engine=engine)
    expected = evaluate(case.model, case.recipe, case.episode, case.loss, engine=engines.Loop())
    assert engine.compilations == 1 and distance(found.values, expected.values) <= 1e-10


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_nothing_changes_but_grad(case: Case, engine: engines.Engine) -> None:
    before = state(case.model), state(case.recipe.adapter)
    data = case.episode.map(torch.clone)
    case.gradient(engine)
    evaluate(case.model, case.recipe, case.episode, case.loss, engine=engine)
    assert same_state(state(case.model), before[0]) and same_state(state(case.recipe.adapter), before[1])
    assert torch.equal(case.episode.support.x, data.support.x)
    assert torch.equal(case.episode.query.y, data.query.y)


def test_a_call_of_the_adapter_changes_nothing(case: Case) -> None:
    before = state(case.model), state(case.recipe.adapter)
    case.gradient()
    gradients = {name: grad_of(param) for name, param in case.params().items()}
    case.adapt(0)
    assert same_state(state(case.model), before[0]) and same_state(state(case.recipe.adapter), before[1])
    assert all(torch.equal(grad_of(p), gradients[name]) for name, p in case.params().items())


def test_running_statistics_stay_and_a_frozen_model_stays_frozen(case: Case) -> None:
    case.model.body[1] = nn.BatchNorm1d(FEATURES).double()
    case.model.body[0].weight.requires_grad_(False)
    case.recipe.adapter.requires_grad_(True)
    if case.row.make is ROWS["two prefixes"].make:
        case = replace(case, recipe=recipes.maml(2, 0.3, adapts=("body.0.bias", "head.bias")))
    before = state(case.model)
    case.gradient(engines.Loop())
    case.adapt(1)
    evaluate(case.model, case.recipe, case.episode, case.loss, engine=engines.Loop())
    assert same_state(state(case.model), before)
    assert case.model.body[0].weight.grad is None and case.model.body[0].bias.grad is not None


def test_frozen_parameters_are_constants(case: Case) -> None:
    """They get no gradient and are not adapted; the others get the one they would get anyway."""
    frozen = case.model.body[0].bias
    before = case.gradient()
    start = sum(p.numel() for p in list(case.model.parameters())[:1])
    frozen.requires_grad_(False)
    after = case.gradient()
    assert frozen.grad is None
    moving = (adapters.Gradient, adapters.TransductiveFineTuning)
    parts = [part for part in case.recipe.adapter.modules() if isinstance(part, moving)]
    if not any(part.steps for part in parts):  # no inner loop that would have moved it
        kept = torch.ones_like(after, dtype=torch.bool)
        kept[start : start + frozen.numel()] = False
        assert distance(after[kept], before[kept]) <= 1e-12
    assert torch.equal(case.adapt(0)["body.0.bias"], frozen)


def test_grad_accumulates(case: Case) -> None:
    engine = engines.Vmap()
    once = case.gradient(engine)
    meta_backward(case.model, case.recipe, case.episode, case.loss, engine=engine)
    twice = torch.cat([grad_of(p).flatten() for p in case.params().values()])
    assert torch.equal(twice, 2 * once) and (case.row.kind == "numbers" or once.norm() > 1e-3)


def test_the_order_of_tasks_does_not_matter_for_the_mean(case: Case) -> None:
    turned = case.episode[torch.tensor([3, 0, 4, 2, 1])]
    assert distance(case.gradient(episode=turned), case.gradient()) <= 1e-12


def test_a_repeated_call_gives_the_same(case: Case) -> None:
    assert torch.equal(case.gradient(engines.Loop()), case.gradient(engines.Loop()))
    first, second = case.adapt(2), case.adapt(2)
    own = [name for name in first if not name.startswith("adapter:")]
    assert list(first) == list(second) and own == [name for name, _ in case.model.named_parameters()]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_transductive_adapters_look_at_other_query_examples(case: Case) -> None:
    case.model.body[1] = nn.Identity()
    one = case.episode[0]
    fast = case.adapt(0)
    together = case.predict(fast, one.query.x)
    alone = torch.cat([case.predict(fast, x[None]) for x in one.query.x])
    assert (distance(alone.detach(), together.detach()) <= 1e-12) != case.recipe.adapter.transductive


def test_the_path_ends_where_the_call_does(case: Case) -> None:
    one = case.episode[0]
    *_, last = case.recipe.adapter.path(case.model, one.support, case.loss, task=one.task)
    found = case.adapt(0)
    assert all(torch.equal(last[name], found[name]) for name in found)


def test_given_params_take_the_place_of_the_models_own(case: Case) -> None:
    expected = {name: param.clone() for name, param in case.adapt(1).items()}
    params = {name: p.detach().clone() for name, p in case.model.named_parameters()}
    with torch.no_grad():
        for param in case.model.parameters():
            param.add_(1.0)
    one = case.episode[1]
    found = case.recipe.adapter(case.model, one.support, case.loss, params=params, task=one.task)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_outer_gradient_is_that_of_central_differences(exact: Case) -> None:
    check_gradient(exact.objective, list(exact.params().values()), exact.gradient(), directions=4)


def test_the_adapter_alone_is_differentiable_by_plain_autograd(case: Case) -> None:
    expected = case.gradient()
    case.zero()
    case.objective().backward()
    found = torch.cat([grad_of(p).flatten() for p in case.params().values()])
    assert distance(found, expected) <= 1e-12
