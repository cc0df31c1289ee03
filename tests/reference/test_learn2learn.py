"""Our `Gradient` against learn2learn's learners; the learners and task sets as parts of metamtl."""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
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


class Shapes(torch.utils.data.Dataset):
    """60 vectors of 6 classes, 10 .. 15; the first entry is the class, the second the position."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = 10 + index % 6
        return torch.tensor([float(label), float(index)]), label


@pytest.mark.filterwarnings("ignore:TaskDataset is deprecated")
@pytest.mark.parametrize("kind", ["Taskset", "TaskDataset"])
@pytest.mark.parametrize("renumbered", [False, True])
def test_a_task_set_of_learn2learn_as_episodes(l2l: ModuleType, kind: str, renumbered: bool) -> None:
    random.seed(0)
    np.random.seed(0)
    dataset, t = l2l.data.MetaDataset(Shapes()), l2l.data.transforms
    transforms = [t.NWays(dataset, n=3), t.KShots(dataset, k=2 + 4), t.LoadData(dataset)]
    transforms += [t.RemapLabels(dataset), t.ConsecutiveLabels(dataset)] if renumbered else []
    taskset = getattr(l2l.data, kind)(dataset, transforms, num_tasks=100)
    episode = interop.episodes(taskset, 5, ways=3, shots=2)
    episode.check()
    assert episode.support is not None
    assert episode.support.x.shape == (5, 6, 2) and episode.query.x.shape == (5, 12, 2)
    assert episode.support.y.tolist() == [[0, 0, 1, 1, 2, 2]] * 5
    assert episode.query.y.tolist() == [[0] * 4 + [1] * 4 + [2] * 4] * 5
    for task in range(5):
        both = torch.cat([episode.support.x[task], episode.query.x[task]])
        assert len(both[:, 1].unique()) == 18  # no example twice
        for label in range(3):
            seen = [b.x[task][b.y[task] == label][:, 0].unique() for b in (episode.support, episode.query)]
            assert len(seen[0]) == 1 and torch.equal(seen[0], seen[1])
            if not renumbered:
                assert episode.task is not None and episode.task[task, label] == seen[0]
    assert (episode.task is None) == renumbered and episode.ways == 3


def test_a_task_set_that_does_not_fit_is_refused(l2l: ModuleType) -> None:
    dataset, t = l2l.data.MetaDataset(Shapes()), l2l.data.transforms
    transforms = [t.NWays(dataset, n=3), t.KShots(dataset, k=2), t.LoadData(dataset)]
    taskset = l2l.data.Taskset(dataset, transforms, num_tasks=10)
    with pytest.raises(ValueError, match=r"ways=5, shots=1 need 5 classes"):
        interop.episodes(taskset, 1, ways=5, shots=1)
    with pytest.raises(ValueError, match=r"more than 2"):
        interop.episodes(taskset, 1, ways=3, shots=2)


def test_a_second_order_step_is_five_times_faster(
    l2l: ModuleType, relative_error: Error, grads_of: Grads
) -> None:
    """25 sinusoid tasks, 10 + 10 points, 5 inner steps, the net of Finn et al., float32.

    Both sides give `.grad` from the same tensors. They take turns, so that what the machine does beside
    falls on both; a turn is one step of theirs, three of ours. The claim is about a machine with idle
    cores: torch's threads wait for each other, and where others keep the cores busy a step can take a
    hundred times as long. Rounds of 9 turns are therefore repeated, for 90 s, until one is undisturbed.
    """
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(25, 20, 1, generator=rng) * 10 - 5
    amplitude, phase = (torch.rand(25, 1, 1, generator=rng) * s for s in (5.0, 3.14))
    y = amplitude * torch.sin(x - phase)
    episode = Episode(Batch(x[:, :10], y[:, :10]), Batch(x[:, 10:], y[:, 10:]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nets.mlp(1, 40, 40, 1)
    recipe, learner = recipes.maml(5, 0.01), l2l.algorithms.MAML(model, lr=0.01)

    def ours() -> None:
        model.zero_grad()
        meta_backward(model, recipe, episode, F.mse_loss, engine=engines.Vmap())

    def theirs() -> None:
        model.zero_grad()
        total = torch.zeros(())
        for xs, ys, xq, yq in zip(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:]):
            clone = learner.clone()
            for _ in range(5):
                clone.adapt(F.mse_loss(clone(xs), ys))
            total = total + F.mse_loss(clone(xq), yq)
        (total / 25).backward()

    def milliseconds(step: Callable[[], None], times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            step()
        return 1e3 * (time.perf_counter() - begin) / times

    theirs()
    expected = grads_of(model.named_parameters())
    ours()
    assert relative_error(grads_of(model.named_parameters()), expected) < 1e-4
    for _ in range(2):  # warm-up
        ours()
        theirs()
    rounds, begin = [], time.perf_counter()
    while time.perf_counter() - begin < 90:
        gc.collect()
        turns = [(milliseconds(theirs, 1), milliseconds(ours, 3)) for _ in range(9)]
        rounds.append(tuple(statistics.median(side) for side in zip(*turns)))
        if rounds[-1][0] >= 5 * rounds[-1][1]:
            return
        time.sleep(3)
    found = "; ".join(f"learn2learn {theirs:.1f} ms, ours {ours:.1f} ms" for theirs, ours in rounds)
    pytest.fail(f"{found}. Is the machine busy with something else?")
