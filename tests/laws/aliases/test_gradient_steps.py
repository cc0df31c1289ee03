"""A parameter or module that stands in a model in several places is one: inner loops of gradient steps.

The reference is an unroll by plain autograd (the fixture `plain`) on a copy of the model.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from metamtl import Metric, engines, evaluate, recipes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # compiling
RATE, STEPS = 0.3, 2


def steps_on(case: Any, names: list[str], **options: Any) -> Any:
    """`adapt(values, support, task)`: gradient steps on the parameters `names`."""
    rates = dict.fromkeys(names, RATE)
    return lambda values, support, task: case.net.steps(
        values, names, support, case.loss, rates, STEPS, **options
    )


@pytest.mark.parametrize("order", ["exact", "checkpointed", "first_order"])
def test_all_parameters(case: Any, order: str, engine: engines.Engine) -> None:
    expected = case.expected(steps_on(case, list(case.net.start), first_order=order == "first_order"))
    case.check(recipes.maml(STEPS, RATE, differentiation=order), engine, expected)


def test_a_part_by_any_of_its_names(part: Any, engine: engines.Engine) -> None:
    """ANIL and BOIL: what is adapted is adapted wherever it stands."""
    case, prefix = part
    expected = case.expected(steps_on(case, case.net.names(prefix)))
    case.check(recipes.anil(STEPS, RATE, adapts=prefix), engine, expected)


@pytest.mark.parametrize("per", ["element", "tensor"])
def test_learned_rates(case: Any, per: str, engine: engines.Engine) -> None:
    """Meta-SGD, and one rate for each tensor and step."""
    start = case.net.start
    if per == "element":
        recipe = recipes.metasgd(case.model, STEPS, RATE)
        rates = {name: torch.full_like(value, RATE).requires_grad_() for name, value in start.items()}
    else:
        recipe = recipes.lslr(case.model, STEPS, RATE)
        rates = {name: param.new_full((STEPS,), RATE).requires_grad_() for name, param in start.items()}

    def adapt(values: Any, support: Any, task: Any) -> Any:
        for k in range(STEPS):
            now = rates if per == "element" else {name: rate[k] for name, rate in rates.items()}
            values = case.net.steps(values, list(start), support, case.loss, now, 1)
        return values

    case.check(recipe, engine, case.expected(adapt, rates.values()))


def test_evaluation(case: Any, engine: engines.Engine) -> None:
    before = {id(param) for param in case.model.parameters()}
    adapt, losses = steps_on(case, list(case.net.start)), []
    for t in range(case.episode.num_tasks):
        one = case.episode[t]
        values = adapt(case.net.start, one.support, None)
        losses.append(float(case.loss(case.net(values, one.query.x), one.query.y).detach()))
    metrics = {"loss": Metric(case.loss, higher_is_better=False)}
    recipe = recipes.maml(STEPS, RATE)
    result = evaluate(case.model, recipe, case.episode, case.loss, metrics=metrics, engine=engine)
    assert result["loss"].mean == pytest.approx(sum(losses) / len(losses), rel=1e-10)
    assert {id(param) for param in case.model.parameters()} == before


def test_only_a_bias_of_a_tied_layer(case: Any, engine: engines.Engine) -> None:
    """Its weight, tied or not, stays as the body's copy of it does."""
    (bias,) = case.net.names("head.bias")
    expected = case.expected(steps_on(case, [bias]))
    case.check(recipes.maml(STEPS, RATE, adapts="head.bias"), engine, expected)


COMPILED = ("one layer under two names", "a body around another module", "embedding and output")


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED, indirect=True)
def test_compiled(case: Any) -> None:
    expected = case.expected(steps_on(case, case.net.names("head")))
    with mock.patch("metamtl.engines.kinds.BACKEND", "eager"):  # traced, without generated code
        case.check(recipes.anil(STEPS, RATE), engines.Compiled(), expected)
