"""Update rules against `higher`'s differentiable optimizers, learned rates against learn2learn's."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from metamtl import Recipe, adapters, engines, meta_backward, recipes, rules
from metamtl.episode import Batch

Error = Callable[[dict[str, Tensor], dict[str, Tensor]], float]
Grads = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
@pytest.mark.parametrize(
    ("make", "options", "tolerance"),
    [
        (rules.SGD, {"momentum": 0.9}, 1e-10),
        (rules.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, 1e-10),
        # higher adds eps before it corrects the root, as torch once did: the same for eps towards 0.
        (rules.Adam, {"eps": 1e-14}, 1e-8),
        (rules.Adam, {"amsgrad": True, "betas": (0.5, 0.9), "eps": 1e-14}, 1e-8),
        (rules.Adamax, {}, 1e-10),
        # In higher it counts its steps, and so computes its step size, in single precision.
        (rules.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}, 1e-7),
        (rules.Adadelta, {"rho": 0.8}, 1e-10),
    ],
)
def test_rules_give_the_meta_gradients_of_higher(
    higher: ModuleType,
    problem: Any,
    engine: engines.Engine,
    make: Any,
    options: dict[str, Any],
    tolerance: float,
    relative_error: Error,
    grads_of: Grads,
) -> None:
    def query_loss(support: Batch, query: Batch) -> Tensor:
        optimizer = getattr(torch.optim, make.__name__)(problem.model.parameters(), lr=0.01, **options)
        with higher.innerloop_ctx(problem.model, optimizer, copy_initial_weights=False) as (net, inner):
            for _ in range(3):
                inner.step(problem.loss(net(support.x), support.y))
            return problem.loss(net(query.x), query.y)

    expected = problem.gradients(query_loss)
    recipe = Recipe(adapters.Gradient(3, 0.01, rule=make(**options)))
    meta_backward(problem.model, recipe, problem.episode, problem.loss, engine=engine)
    assert relative_error(grads_of(problem.model.named_parameters()), expected) <= tolerance


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
@pytest.mark.parametrize("order", ["exact", "checkpointed", "first_order"])
def test_metasgd_gives_the_gradients_of_learn2learn(
    l2l: ModuleType,
    problem: Any,
    engine: engines.Engine,
    order: str,
    relative_error: Error,
    grads_of: Grads,
) -> None:
    learner = l2l.algorithms.MetaSGD(problem.model, lr=problem.lr, first_order=order == "first_order")

    def query_loss(support: Batch, query: Batch) -> Tensor:
        clone = learner.clone()
        for _ in range(3):
            clone.adapt(problem.loss(clone(support.x), support.y))
        return problem.loss(clone(query.x), query.y)

    for rate in learner.lrs:
        rate.grad = None
    expected = problem.gradients(query_loss)
    expected_rates = [torch.zeros_like(r) if r.grad is None else r.grad.clone() for r in learner.lrs]
    recipe = recipes.metasgd(problem.model, 3, problem.lr, differentiation=order)
    meta_backward(problem.model, recipe, problem.episode, problem.loss, engine=engine)
    assert relative_error(grads_of(problem.model.named_parameters()), expected) <= 1e-10
    found = grads_of(recipe.adapter.named_parameters())
    assert relative_error(found, dict(zip(found, expected_rates))) <= 1e-10
