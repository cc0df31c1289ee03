"""Our `Gradient` against `higher`'s inner loops, and those loops as an adapter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import adapters, engines, evaluate, interop, meta_backward, nets, recipes
from metamtl.episode import Batch, Episode

Error = Callable[[dict[str, Tensor], dict[str, Tensor]], float]
Grads = Callable[..., dict[str, Tensor]]


def sgd(part: str | None, lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        chosen = model if part is None else model.get_submodule(part)
        return torch.optim.SGD(chosen.parameters(), lr=lr)

    return make


def loop(steps: int, order: str = "exact") -> Callable[..., None]:
    """The body of a user's `innerloop_ctx`."""
    constant = (lambda gradients: [g.detach() for g in gradients]) if order == "first_order" else None

    def inner(fmodel: nn.Module, diffopt: Any, support: Batch, loss: Callable[..., Tensor]) -> None:
        for _ in range(steps):
            diffopt.step(loss(fmodel(support.x), support.y), grad_callback=constant)

    return inner


def by_higher(
    higher: ModuleType, problem: Any, steps: int, part: str | None, order: str
) -> dict[str, Tensor]:
    """The meta-gradient of a training loop written with `higher` alone."""

    def query_loss(support: Batch, query: Batch) -> Tensor:
        optimizer = sgd(part, problem.lr)(problem.model)
        with higher.innerloop_ctx(problem.model, optimizer, copy_initial_weights=False) as (
            fmodel,
            diffopt,
        ):
            loop(steps, order)(fmodel, diffopt, support, problem.loss)
            return problem.loss(fmodel(query.x), query.y)

    return problem.gradients(query_loss)


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
@pytest.mark.parametrize(
    ("steps", "part", "order"),
    [
        (1, None, "exact"),
        (3, None, "exact"),
        (10, None, "exact"),
        (3, None, "first_order"),
        (3, "head", "exact"),
        (3, "body", "exact"),
        (3, "body", "first_order"),
    ],
)
def test_gradient_gives_the_meta_gradient_of_higher(
    higher: ModuleType,
    problem: Any,
    engine: engines.Engine,
    steps: int,
    part: str | None,
    order: str,
    relative_error: Error,
    grads_of: Grads,
) -> None:
    expected = by_higher(higher, problem, steps, part, order)
    recipe = recipes.maml(steps, problem.lr, adapts=part, differentiation=order)
    meta_backward(problem.model, recipe, problem.episode, problem.loss, engine=engine)
    assert relative_error(grads_of(problem.model.named_parameters()), expected) <= 1e-12


@pytest.mark.parametrize(("part", "order"), [(None, "exact"), (None, "first_order"), ("head", "exact")])
def test_a_loop_of_higher_as_an_adapter(
    higher: ModuleType, problem: Any, part: str | None, order: str, relative_error: Error, grads_of: Grads
) -> None:
    expected = by_higher(higher, problem, 3, part, order)
    adapter = interop.HigherAdapter(loop(3, order), optimizer=sgd(part, problem.lr))
    recipe = recipes.Recipe(adapter)
    meta_backward(problem.model, recipe, problem.episode, problem.loss, engine=engines.Loop())
    assert relative_error(grads_of(problem.model.named_parameters()), expected) <= 1e-12


def test_another_optimizer_of_higher(
    higher: ModuleType, problem: Any, relative_error: Error, grads_of: Grads
) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=problem.lr, momentum=0.9)

    def query_loss(support: Batch, query: Batch) -> Tensor:
        optimizer = make(problem.model)
        with higher.innerloop_ctx(problem.model, optimizer, copy_initial_weights=False) as (
            fmodel,
            diffopt,
        ):
            loop(3)(fmodel, diffopt, support, problem.loss)
            return problem.loss(fmodel(query.x), query.y)

    expected = problem.gradients(query_loss)
    recipe = recipes.Recipe(interop.HigherAdapter(loop(3), optimizer=make))
    meta_backward(problem.model, recipe, problem.episode, problem.loss, engine=engines.Loop())
    assert relative_error(grads_of(problem.model.named_parameters()), expected) <= 1e-12


def test_the_gradient_reaches_the_params_given_and_only_those(higher: ModuleType, problem: Any) -> None:
    """Also where they are not leaves, and where the loop asks `fmodel` for its first parameters."""
    before = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    roots = {name: (1.1 * p).detach().requires_grad_() for name, p in before.items()}
    support, query = problem.episode[0].support, problem.episode[0].query

    def inner(fmodel: Any, diffopt: Any, support: Batch, loss: Callable[..., Tensor]) -> None:
        pull = sum((a - b).square().sum() for a, b in zip(fmodel.parameters(), fmodel.parameters(time=0)))
        diffopt.step(loss(fmodel(support.x), support.y) + pull)

    adapter = interop.HigherAdapter(inner, optimizer=sgd(None, problem.lr))
    fast = adapter(problem.model, support, problem.loss, params={n: 2 * r for n, r in roots.items()})
    problem.loss(functional_call(problem.model, fast, (query.x,)), query.y).backward()
    ours = adapters.Gradient(1, problem.lr)
    expected = ours(problem.model, support, problem.loss, params={n: 2 * r for n, r in roots.items()})
    assert list(fast) == list(expected)
    for name, param in problem.model.named_parameters():
        torch.testing.assert_close(fast[name], expected[name], rtol=1e-12, atol=1e-14)
        assert roots[name].grad is not None and param.grad is None
        assert torch.equal(param, before[name])


def test_evaluation_adapts_without_a_graph(higher: ModuleType, problem: Any) -> None:
    adapter = interop.HigherAdapter(loop(3), optimizer=sgd(None, problem.lr))
    with torch.no_grad():
        fast = adapter(problem.model, problem.episode[0].support, problem.loss)
    assert not any(tensor.requires_grad for tensor in fast.values())
    theirs, ours = (
        evaluate(problem.model, recipe, problem.episode, problem.loss, engine=engines.Loop())
        for recipe in (recipes.Recipe(adapter), recipes.maml(3, problem.lr))
    )
    assert theirs.mean == pytest.approx(ours.mean, rel=1e-12)


def test_running_statistics_and_frozen_parameters_stay(higher: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    adapter = interop.HigherAdapter(
        loop(2), optimizer=lambda m: torch.optim.SGD((p for p in m.parameters() if p.requires_grad), lr=0.1)
    )
    fast = adapter(model, Batch(x, y), F.mse_loss)
    assert torch.equal(fast["0.weight"], model[0].weight) and not torch.equal(fast["2.bias"], model[2].bias)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_vmap_is_refused_with_the_cure(higher: ModuleType) -> None:
    x = torch.zeros(2, 3, 1)
    adapter = interop.HigherAdapter(loop(1), optimizer=sgd(None, 0.1))
    recipe, episode = recipes.Recipe(adapter), Episode(Batch(x, x), Batch(x, x))
    for call in (meta_backward, evaluate):
        with pytest.raises(ValueError, match=r"HigherAdapter .* vmap .* engine=engines\.Loop\(\)"):
            call(nets.mlp(1, 2, 1), recipe, episode, F.mse_loss, engine=engines.Vmap())


def test_without_higher_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "higher", None)
    adapter = interop.HigherAdapter(loop(1), optimizer=sgd(None, 0.1))
    with pytest.raises(ImportError, match=r"pip install 'metamtl\[higher\]'.*make peers"):
        adapter(nn.Linear(1, 1), Batch(torch.zeros(1, 1), torch.zeros(1, 1)), F.mse_loss)
