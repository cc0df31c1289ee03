"""CAVIA, MAML++, ES-MAML, DropGrad, Meta-Curvature, learned rules and mini-batches by explicit loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Recipe,
    adapters,
    engines,
    meta_backward,
    nets,
    objectives,
    recipes,
    rules,
)
from metamtl.functional.counter_random import normal, uniform

T, S = 3, 10
Params = dict[str, Tensor]
Error = Callable[[Params, Params], float]


def data() -> Episode:
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(T, 2 * S, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    return Episode(Batch(x[:, :S], y[:, :S]), Batch(x[:, S:], y[:, S:]))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def found(model: nn.Module, recipe: Recipe, engine: engines.Engine | None = None) -> Params:
    for param in (*model.parameters(), *recipe.parameters()):
        param.grad = None
    recipe.adapter.double()
    meta_backward(model, recipe, data(), F.mse_loss, engine=engine or engines.Vmap())
    named = (*model.named_parameters(), *recipe.adapter.named_parameters())
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named}


def expected(model: nn.Module, objective: Callable[[Params, Episode], Tensor], *extra: Tensor) -> Params:
    """The gradient of the mean of `objective(theta, episode of one task)` by plain autograd."""
    theta = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    value = torch.stack([objective(theta, data()[t]) for t in range(T)]).mean()
    grads = torch.autograd.grad(value, [*theta.values(), *extra], allow_unused=True, materialize_grads=True)
    return dict(zip((*theta, *map(str, range(len(extra)))), grads))


def loss(model: nn.Module, params: Params, batch: Any) -> Tensor:
    return F.mse_loss(functional_call(model, params, (batch[0],)), batch[1])


def gradient(model: nn.Module, params: Params, batch: Any, names: list[str]) -> Params:
    value = loss(model, params, batch)
    return dict(zip(names, torch.autograd.grad(value, [params[n] for n in names], create_graph=True)))


def test_cavia_adapts_a_context_from_zero(relative_error: Error) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nets.context_mlp(2, 6, 2, context=3).double()
    model.context.context.data += 1.0  # which the method ignores

    def objective(theta: Params, one: Episode) -> Tensor:
        name = "context.context"
        params = {**theta, name: torch.zeros(3, dtype=torch.float64, requires_grad=True)}
        for _ in range(3):
            step = gradient(model, params, one.support, [name])
            params = {**params, name: params[name] - 0.5 * step[name]}
        return loss(model, params, one.query)

    ours = found(model, recipes.cavia(3, 0.5))
    assert relative_error(ours, expected(model, objective)) <= 1e-12
    assert not ours["context.context"].any()


def test_the_multi_step_loss_is_the_sum_over_the_steps(relative_error: Error) -> None:
    model = network()

    def objective(theta: Params, one: Episode) -> Tensor:
        params, total = dict(theta), torch.zeros((), dtype=torch.float64)
        for weight in (0.5, 0.2, 2.0):
            step = gradient(model, params, one.support, list(params))
            params = {n: p - 0.1 * step[n] for n, p in params.items()}
            total = total + weight * loss(model, params, one.query)
        return total

    recipe = recipes.maml(3, 0.1, objective=objectives.MultiStep((0.5, 0.2, 2.0)))
    assert relative_error(found(model, recipe), expected(model, objective)) <= 1e-12
    with pytest.raises(ValueError, match="2 weights, but the adapter has 3 inner steps"):
        found(model, recipes.maml(3, 0.1, objective=objectives.MultiStep((1.0, 1.0))))


def test_the_weights_are_annealed_as_in_the_code_of_maml_plus_plus() -> None:
    for step in (0, 3, 9, 10, 50):
        weights = objectives.annealed_weights(5, step, 10)
        others = max(1 / 5 - min(step, 10) * (1 / 5 / 10), 0.03 / 5)
        assert weights[:4] == pytest.approx([others] * 4)
        assert weights[4] == pytest.approx(min(1 / 5 + min(step, 10) * 4 * (1 / 5 / 10), 1 - 4 * 0.03 / 5))
    recipe = recipes.maml_plus_plus(network(), 5, multi_step_until=10, first_order_until=4)
    assert [recipe.at(s).adapter.differentiation for s in (3, 4)] == [
        adapters.FirstOrder(),
        adapters.Unrolled(),
    ]
    assert recipe.at(9).objective.weights == objectives.annealed_weights(5, 9, 10)
    assert recipe.at(10).objective is objectives.query_loss
    assert {id(p) for p in recipe.at(3).parameters()} == {id(p) for p in recipe.parameters()}
    with pytest.raises(ValueError, match=r"pass recipe\.at\(step\)"):
        meta_backward(network(), recipe, data(), F.mse_loss)


def test_es_maml_is_the_formula(relative_error: Error) -> None:
    model, recipe = network(), recipes.es_maml(1, 0.1, samples=3, sigma=0.05, seed=7).at(4)
    ours = found(model, recipe)
    theta = {n: p.detach() for n, p in model.named_parameters()}
    total = {n: torch.zeros_like(p) for n, p in theta.items()}
    for sample in range(3):
        noise = {n: normal((7, 4, sample, i), p.shape) for i, (n, p) in enumerate(theta.items())}
        for sign in (1, -1):
            moved = {n: (p + sign * 0.05 * noise[n]).requires_grad_() for n, p in theta.items()}
            for t in range(T):
                one = data()[t]
                step = gradient(model, moved, one.support, list(moved))
                value = loss(model, {n: p - 0.1 * step[n] for n, p in moved.items()}, one.query).detach()
                total = {n: g + sign * value * noise[n] / (2 * 3 * 0.05 * T) for n, g in total.items()}
    assert relative_error(ours, total) <= 1e-10


def test_es_maml_estimates_the_gradient_of_maml() -> None:
    model = network()
    recipe = Recipe(adapters.Gradient(1, 0.1), objective=objectives.EvolutionStrategy(150, 0.01))
    ours, exact = (
        torch.cat([g.flatten() for g in found(model, r).values()]) for r in (recipe, recipes.maml(1, 0.1))
    )
    assert F.cosine_similarity(ours, exact, dim=0) > 0.88 and 0.8 < ours.norm() / exact.norm() < 1.25


@pytest.mark.parametrize("kind", ["binary", "gaussian"])
def test_drop_grad_multiplies_inner_gradients(kind: Any, relative_error: Error) -> None:
    model = network()

    def factors(k: int, i: int, shape: torch.Size) -> Tensor:
        if kind == "binary":
            return (uniform((5, 2, k, i), shape) >= 0.4).double() / 0.6
        return 1 + math.sqrt(0.4 / 0.6) * normal((5, 2, k, i), shape)

    def objective(theta: Params, one: Episode) -> Tensor:
        params = dict(theta)
        for k in range(2):
            step = gradient(model, params, one.support, list(params))
            noisy = {n: g * factors(k, i, g.shape) for i, (n, g) in enumerate(step.items())}
            params = {n: p - 0.1 * noisy[n] for n, p in params.items()}
        return loss(model, params, one.query)

    recipe = recipes.drop_grad(2, 0.1, rate=0.4, kind=kind, seed=5)
    assert relative_error(found(model, recipe.at(2)), expected(model, objective)) <= 1e-12
    assert relative_error(found(model, recipe.at(3)), expected(model, objective)) > 1e-3
    quiet = Recipe(recipe.adapter)  # in evaluation
    assert relative_error(found(model, quiet), found(model, recipes.maml(2, 0.1))) <= 1e-12


def test_counter_numbers_are_uniform_normal_and_differ_between_keys() -> None:
    u, z = uniform((1, 2), (20_000,)), normal((1, 2), (20_000,))
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.003 and u.min() >= 0 and u.max() < 1
    assert abs(z.mean()) < 0.02 and abs(z.var() - 1) < 0.03 and abs((z**4).mean() - 3) < 0.2
    others = [uniform(key, (20_000,)) for key in ((1, 3), (2, 1), (2, 2), (1, 2, 0), (1,))]
    correlations = torch.corrcoef(torch.stack([u, *others])) - torch.eye(6)
    assert correlations.abs().max() < 0.03
    assert torch.equal(uniform((1, torch.tensor(2)), (20_000,)), u)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2, 2)])
def test_meta_curvature_is_that_of_learn2learn(l2l: ModuleType, shape: tuple[int, ...]) -> None:
    holder = nn.Module()
    holder.w = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    transform = l2l.optim.MetaCurvatureTransform(holder.w).double()
    rule = rules.MetaCurvature(holder)
    names = {"mc": "out", "mc_in": "out", "mc_out": "in", "mc_f": "kernel"}
    with torch.no_grad():
        for name, theirs in transform.named_parameters():
            theirs.copy_(torch.randn(theirs.shape, dtype=torch.float64))
            rule.factors.w.get_parameter(names[name]).copy_(theirs)
    g = torch.randn(shape, dtype=torch.float64)
    ours = rule.update({"w": torch.zeros_like(g)}, {"w": g}, (), {"w": 0.5}, torch.tensor(0))[0]["w"]
    assert torch.allclose(ours, -0.5 * transform(g), rtol=1e-12)


def test_meta_gradients_with_curvature_are_those_of_learn2learn(
    l2l: ModuleType, relative_error: Error
) -> None:
    model = network()
    recipe = recipes.meta_curvature(model, 3, 0.1)
    learner = l2l.algorithms.GBML(
        network(), transform=l2l.optim.MetaCurvatureTransform, lr=0.1, adapt_transform=False
    ).double()
    for t in range(T):
        one, clone = data()[t], learner.clone()
        for _ in range(3):
            clone.adapt(F.mse_loss(clone(one.support.x), one.support.y))
        (F.mse_loss(clone(one.query.x), one.query.y) / T).backward()
    theirs = [p.grad for p in learner.module.parameters()]
    ours = found(model, recipe)
    named = [name for name, _ in model.named_parameters()]
    assert relative_error({n: ours[n] for n in named}, dict(zip(named, theirs))) <= 1e-10
    learned = [p.grad for p in learner.compute_update.parameters()]
    factors = [ours[name] for name, _ in recipe.adapter.named_parameters()]
    assert sorted(float(g.norm()) for g in factors) == pytest.approx(
        sorted(float(g.norm()) for g in learned), rel=1e-9
    )


def test_a_learned_rule_steps_by_its_module(relative_error: Error) -> None:
    model = network()
    module = nn.Linear(2 + 1, 1 + 1).double()
    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]

    def objective(theta: Params, one: Episode) -> Tensor:
        params = dict(theta)
        memory = {n: p.new_zeros(p.shape) for n, p in params.items()}
        for _ in range(2):
            step = gradient(model, params, one.support, list(params))
            for n, g in step.items():
                assert bool((g.abs() > math.exp(-10)).all())
                inputs = torch.stack([g.abs().log() / 10, g.sign(), memory[n]], -1)
                output = inputs @ weights[0].T + weights[1]
                params[n], memory[n] = params[n] - 0.1 * output[..., 0], output[..., 1]
        return loss(model, params, one.query)

    ours = found(model, Recipe(adapters.Gradient(2, 0.1, rule=rules.Learned(module, 1))))
    theirs = expected(model, objective, *weights)
    assert relative_error(ours, dict(zip(ours, theirs.values()))) <= 1e-10


def test_inputs_of_small_gradients_are_scaled_linearly() -> None:
    g = torch.tensor([0.0, 1e-6, -1e-6, 1.0], dtype=torch.float64)
    inputs = rules.learned.preprocessed(g)
    assert torch.allclose(inputs[:3, 1], math.exp(10) * g[:3]) and inputs[:3, 0].tolist() == [-1.0] * 3
    assert inputs[3].tolist() == [0.0, 1.0]


def test_mini_batches_pass_over_the_support_set(relative_error: Error) -> None:
    from metamtl.adapters.gradient_loop import shuffled

    model = network()
    batches = [shuffled(3, torch.tensor(k), 4, S) for k in range(5)]
    for epoch in torch.cat(batches).split(S):
        assert sorted(epoch.tolist()) == list(range(S))

    def objective(theta: Params, one: Episode) -> Tensor:
        params = dict(theta)
        for index in batches[:4]:
            batch = Batch(one.support.x[index], one.support.y[index])
            step = gradient(model, params, batch, list(params))
            params = {n: p - 0.1 * step[n] for n, p in params.items()}
        return loss(model, params, one.query)

    for differentiation in ("exact", "checkpointed"):
        adapter = adapters.Gradient(4, 0.1, differentiation=differentiation, batch_size=4, seed=3)
        assert relative_error(found(model, Recipe(adapter)), expected(model, objective)) <= 1e-12
