"""Our `Gradient` against learn2learn's learners; the learners and task sets as parts of metamtl."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import adapters, engines, evaluate, interop, meta_backward, nets, recipes
from metamtl.episode import Batch, Episode

Error = Callable[[dict[str, Tensor], dict[str, Tensor]], float]
Grads = Callable[..., dict[str, Tensor]]


def by_learn2learn(problem: Any, learner: Any, steps: int) -> dict[str, Tensor]:
    """The meta-gradient of the `fast_adapt` of learn2learn's examples."""

    def query_loss(support: Batch, query: Batch) -> Tensor:
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(problem.loss(clone(support.x), support.y))
        return problem.loss(clone(query.x), query.y)

    return problem.gradients(query_loss)


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
@pytest.mark.parametrize(
    ("steps", "order"), [(1, "exact"), (3, "exact"), (10, "exact"), (3, "first_order")]
)
def test_gradient_gives_the_meta_gradient_of_learn2learn(
    l2l: ModuleType,
    problem: Any,
    engine: engines.Engine,
    steps: int,
    order: str,
    relative_error: Error,
    grads_of: Grads,
) -> None:
    learner = l2l.algorithms.MAML(problem.model, lr=problem.lr, first_order=order == "first_order")
    expected = by_learn2learn(problem, learner, steps)
    make = recipes.fomaml if order == "first_order" else recipes.maml
    meta_backward(problem.model, make(steps, problem.lr), problem.episode, problem.loss, engine=engine)
    assert relative_error(grads_of(problem.model.named_parameters()), expected) <= 1e-12


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_anil_gives_the_meta_gradient_of_learn2learn(
    l2l: ModuleType, problem: Any, engine: engines.Engine, relative_error: Error, grads_of: Grads
) -> None:
    head = l2l.algorithms.MAML(problem.model.head, lr=problem.lr)

    def query_loss(support: Batch, query: Batch) -> Tensor:
        clone = head.clone()
        features = problem.model.body(support.x)
        for _ in range(3):
            clone.adapt(problem.loss(clone(features), support.y))
        return problem.loss(clone(problem.model.body(query.x)), query.y)

    expected = problem.gradients(query_loss)
    meta_backward(problem.model, recipes.anil(3, problem.lr), problem.episode, problem.loss, engine=engine)
    assert relative_error(grads_of(problem.model.named_parameters()), expected) <= 1e-12


@pytest.mark.parametrize("first_order", [False, True])
def test_a_maml_learner_as_an_adapter(
    l2l: ModuleType, problem: Any, first_order: bool, relative_error: Error, grads_of: Grads
) -> None:
    learner = l2l.algorithms.MAML(problem.model, lr=problem.lr, first_order=first_order)
    expected = by_learn2learn(problem, learner, 3)
    recipe = recipes.Recipe(interop.Learn2Learn(learner, steps=3))
    assert not list(recipe.adapter.parameters())
    meta_backward(problem.model, recipe, problem.episode, problem.loss, engine=engines.Loop())
    assert relative_error(grads_of(problem.model.named_parameters()), expected) <= 1e-12


def test_meta_sgd_as_an_adapter_learns_its_rates(
    l2l: ModuleType, problem: Any, relative_error: Error, grads_of: Grads
) -> None:
    learner = l2l.algorithms.MetaSGD(problem.model, lr=problem.lr)
    expected = by_learn2learn(problem, learner, 2)
    rates = grads_of(learner.lrs.named_parameters())
    learner.zero_grad()
    adapter = interop.Learn2Learn(learner, steps=2)
    assert [id(p) for p in adapter.parameters()] == [id(p) for p in learner.lrs]
    meta_backward(
        problem.model, recipes.Recipe(adapter), problem.episode, problem.loss, engine=engines.Loop()
    )
    assert relative_error(grads_of(problem.model.named_parameters()), expected) <= 1e-12
    assert relative_error(grads_of(learner.lrs.named_parameters()), rates) <= 1e-12


def test_the_gradient_reaches_the_params_given_and_only_those(l2l: ModuleType, problem: Any) -> None:
    """Also where they are not leaves; learners write `.grad` and `.update` on tensors, but not on ours."""
    before = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    roots = {name: (1.1 * p).detach().requires_grad_() for name, p in before.items()}
    support = problem.episode[0].support
    for learner in (
        l2l.algorithms.MAML(problem.model, lr=problem.lr),
        l2l.algorithms.MetaSGD(problem.model, lr=problem.lr),
    ):
        given = {name: root + 0 for name, root in roots.items()}
        fast = interop.Learn2Learn(learner)(problem.model, support, problem.loss, params=given)
        expected = adapters.Gradient(1, problem.lr)(problem.model, support, problem.loss, params=given)
        assert list(fast) == list(expected)
        reached = torch.autograd.grad(sum(t.square().sum() for t in fast.values()), list(roots.values()))
        wanted = torch.autograd.grad(sum(t.square().sum() for t in expected.values()), list(roots.values()))
        torch.testing.assert_close(reached, wanted, rtol=1e-10, atol=1e-12)
        for name, param in problem.model.named_parameters():
            torch.testing.assert_close(fast[name], expected[name], rtol=1e-12, atol=1e-14)
            assert (
                param.grad is None and not hasattr(param, "update") and not hasattr(given[name], "update")
            )
            assert torch.equal(param, before[name])


def test_a_grad_already_there_is_kept(l2l: ModuleType) -> None:
    """Meta-SGD sets `.grad` of what it adapts to None."""
    model = nn.Linear(1, 1)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    learner = l2l.algorithms.MetaSGD(model, lr=0.1)
    interop.Learn2Learn(learner)(model, Batch(torch.ones(2, 1), torch.ones(2, 1)), F.mse_loss)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())


def test_evaluation_adapts_without_a_graph(l2l: ModuleType, problem: Any) -> None:
    adapter = interop.Learn2Learn(l2l.algorithms.MAML(problem.model, lr=problem.lr), steps=3)
    with torch.no_grad():
        fast = adapter(problem.model, problem.episode[0].support, problem.loss)
    assert not any(tensor.requires_grad for tensor in fast.values())
    theirs, ours = (
        evaluate(problem.model, recipe, problem.episode, problem.loss, engine=engines.Loop())
        for recipe in (recipes.Recipe(adapter), recipes.maml(3, problem.lr))
    )
    assert theirs.mean == pytest.approx(ours.mean, rel=1e-12)


def test_running_statistics_stay_and_ties_hold(l2l: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = Batch(torch.randn(6, 3), torch.randn(6, 3))
    adapter = interop.Learn2Learn(l2l.algorithms.MAML(model, lr=0.1), steps=2)
    fast = adapter(model, batch, F.mse_loss)
    expected = adapters.Gradient(2, 0.1)(model, batch, F.mse_loss)
    for name in expected:
        torch.testing.assert_close(fast[name], expected[name])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_vmap_is_refused_with_the_cure(l2l: ModuleType) -> None:
    x, model = torch.zeros(2, 3, 1), nets.mlp(1, 2, 1)
    recipe = recipes.Recipe(interop.Learn2Learn(l2l.algorithms.MAML(model, lr=0.1)))
    for call in (meta_backward, evaluate):
        with pytest.raises(ValueError, match=r"Learn2Learn .* vmap .* engine=engines\.Loop\(\)"):
            call(model, recipe, Episode(Batch(x, x), Batch(x, x)), F.mse_loss, engine=engines.Vmap())


def test_what_is_no_learner_is_refused(l2l: ModuleType) -> None:
    with pytest.raises(TypeError, match="Linear has no module, clone, adapt"):
        interop.Learn2Learn(nn.Linear(1, 1))
    adapter = interop.Learn2Learn(l2l.algorithms.MAML(nn.Linear(1, 1), lr=0.1))
    with pytest.raises(ValueError, match="create the learner with this model"):
        adapter(nn.Linear(2, 1), Batch(torch.zeros(1, 2), torch.zeros(1, 1)), F.mse_loss)


def test_without_learn2learn_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Learner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 1)

        def clone(self) -> None: ...

        def adapt(self, loss: Tensor) -> None: ...

    monkeypatch.setitem(sys.modules, "learn2learn", None)
    adapter, batch = interop.Learn2Learn(Learner()), Batch(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ImportError, match=r"pip install 'metamtl\[learn2learn\]'.*make peers"):
        adapter(nn.Linear(1, 1), batch, F.mse_loss)
