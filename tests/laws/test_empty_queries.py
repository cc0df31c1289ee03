"""Tasks without queries: what reads only the support set works in every engine, the rest is rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Episode, Recipe, adaptation_curve, engines, evaluate, meta_backward, objectives, recipes
from metamtl.metrics import accuracy
from metamtl.tasks import FewShot, Glyphs, LazyFewShot, Sinusoid

LABELS = torch.arange(60) // 10
POINTS = (
    torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + LABELS[:, None]
)
ENGINES = [engines.Loop(), engines.Vmap(), engines.Vmap(chunk_size=2), engines.Compiled(), engines.Auto()]
RULES = {
    "reptile": recipes.reptile(3, 0.1),
    "of one's own": recipes.maml(
        2, 0.1, objective=lambda task: sum(p.square().sum() for p in task.end.values())
    ),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def without_queries(episode: Episode) -> Episode:
    return Episode(episode.support, (episode.query.x[:, :0], episode.query.y[:, :0]), episode.task, 3)  # type: ignore[arg-type]


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("recipe", RULES.values(), ids=RULES)
@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_the_gradient_is_that_with_queries(engine: engines.Engine, recipe: Recipe) -> None:
    episode = FewShot(POINTS, LABELS, ways=3, shots=2, queries=4).sample(5, rng())
    assert episode.support is not None
    expected, model = net(), net()
    meta_backward(expected, recipe, episode, F.cross_entropy, engine=engines.Loop())
    outcome = meta_backward(model, recipe, without_queries(episode), F.cross_entropy, engine=engine)
    torch.testing.assert_close(gradient(model), gradient(expected), rtol=1e-12, atol=1e-13)
    on_support = Episode(episode.support, episode.support, episode.task, 3)
    values = evaluate(expected, recipe, on_support, F.cross_entropy, engine=engines.Loop()).values
    torch.testing.assert_close(outcome.losses, values, rtol=1e-12, atol=1e-13)


READERS = {
    "query_loss": recipes.maml(1, 0.1),
    "episode_loss": recipes.maml(1, 0.1, objective=objectives.episode_loss),
    "multi_step": recipes.maml(2, 0.1, objective=objectives.MultiStep((0.5, 0.5))),
    "evolution": recipes.maml(1, 0.1, objective=objectives.EvolutionStrategy(2)),
    "joint": recipes.joint(),
    "class means": recipes.class_means(features="1"),
}


@pytest.mark.parametrize("recipe", READERS.values(), ids=READERS)
@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap(), engines.Auto()], ids=repr)
def test_an_objective_that_reads_queries_is_rejected(engine: engines.Engine, recipe: Recipe) -> None:
    episode, model = FewShot(POINTS, LABELS, ways=3, shots=2, queries=0).sample(2, rng()), net()
    with pytest.raises(ValueError, match=r"the query set is empty \(queries=0\).*displacement"):
        meta_backward(model, recipe, episode, F.cross_entropy, engine=engine)
    assert all(p.grad is None for p in model.parameters())


def test_a_named_task_without_queries_is_named() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = (
                nn.Linear(4, 4),
                nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}),
            )

        def forward(self, x: Tensor, task: Any) -> Any:
            features = self.body(x)
            return (
                self.head[task](features)
                if isinstance(task, str)
                else {t: self.head[t](features) for t in task}
            )

    x, y = POINTS.float()[:6], LABELS[:6]
    episodes = {"a": Episode(None, (x, y)), "b": Episode(None, (x[:0], y[:0]))}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="task 'b': the support or the query set is empty"):
        meta_backward(Heads(), recipes.joint(), episodes, dict.fromkeys(episodes, F.cross_entropy))


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_nothing_is_measured_on_no_queries(engine: engines.Engine) -> None:
    episode = FewShot(POINTS, LABELS, ways=3, shots=2, queries=0).sample(2, rng())
    for measure in (evaluate, adaptation_curve):
        with pytest.raises(ValueError, match=r"the query set is empty \(queries=0\), so there is nothing"):
            measure(
                net(),
                recipes.maml(),
                episode,
                F.cross_entropy,
                metrics={"accuracy": accuracy},
                engine=engine,
            )


def numbers(i: int, seed: int) -> Tensor:
    return POINTS[i]


FAMILIES = {
    "FewShot": lambda **n: FewShot(POINTS, LABELS, ways=3, **n),
    "FewShot, unequal": lambda **n: FewShot(POINTS, LABELS, ways=3, balance="random", **n),
    "LazyFewShot": lambda **n: LazyFewShot(numbers, LABELS, ways=3, **n),
    "Glyphs": lambda **n: Glyphs(ways=3, **n).split("train"),
    "Sinusoid": lambda **n: Sinusoid(**n),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_sources_draw_tasks_without_queries_or_support(family: Any) -> None:
    whole = family(shots=2, queries=3).sample(4, rng())
    supports = family(shots=2, queries=0).sample(4, rng())
    queries = family(shots=0, queries=3).sample(4, rng())
    supports.check()
    queries.check()
    assert supports.num_tasks == 4 and supports.support.x.shape == whole.support.x.shape
    assert supports.query.x.shape == (4, 0, *whole.query.x.shape[2:]) and not supports.query.y.numel()
    assert supports.query.x.dtype == whole.query.x.dtype and supports.query.y.dtype == whole.query.y.dtype
    assert queries.support is None and queries.query.x.shape == whole.query.x.shape
    for numbers_of in (
        {"shots": 0, "queries": 0},
        {"shots": -1, "queries": 2},
        {"shots": 2, "queries": -1},
    ):
        with pytest.raises(ValueError, match=r"shots=.*, queries=.*: a task needs at least one example"):
            family(**numbers_of)
