"""Episodes with unequal classes, without a support set, and several for the same classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metamtl import Episode, Recipe, adapters, evaluate, meta_backward, nets, recipes
from metamtl.tasks import Clinc150, FewShot
from metamtl.tasks.few_shot import Balance

SIZES = (40, 20, 10, 10)  # 80 examples
LABELS = np.repeat(np.arange(4), SIZES)
POINTS = np.stack([np.arange(80), LABELS], 1).astype(np.float32)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def family(**options: Any) -> FewShot:
    return FewShot(POINTS, LABELS, **{"ways": 4, "shots": 2, "queries": 3, **options})


def counts(y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y, 4).sum(1)


def check(episode: Episode) -> None:
    """Examples are distinct, of the classes in `task`, and sorted by class."""
    episode.check()
    assert episode.task is not None and episode.support is not None
    x, y = (torch.cat([a, b], 1) for a, b in zip(episode.support, episode.query))
    assert all(len(set(row.tolist())) == len(row) for row in x[..., 0])
    assert torch.equal(x[..., 1].long(), episode.task.gather(1, y))
    for part in (episode.support.y, episode.query.y):
        assert torch.equal(part, part.sort(1).values)


@pytest.mark.parametrize("balance", ["random", "own"])
def test_totals_are_fixed_and_every_class_has_support(balance: Balance) -> None:
    episode = family(balance=balance).sample(300, rng())
    check(episode)
    assert episode.support is not None
    assert episode.support.x.shape == (300, 8, 2) and episode.query.x.shape == (300, 12, 2)
    assert int(counts(episode.support.y).min()) == 1
    assert len({tuple(row) for row in counts(episode.support.y).tolist()}) > 20


@pytest.mark.slow
def test_own_frequencies() -> None:
    episode = family(balance="own", shots=0, queries=5).sample(4_000, rng())
    assert episode.support is None and episode.task is not None
    drawn = episode.task.gather(1, episode.query.y).flatten().bincount().double() / 80_000
    assert drawn.tolist() == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.01)
    # Every example has the same probability.
    examples = episode.query.x[..., 0].flatten().long().bincount()
    assert examples.tolist() == pytest.approx([1_000] * 80, rel=0.15)


@pytest.mark.slow
def test_random_proportions_are_uniform_on_the_simplex() -> None:
    points = np.zeros((400_000, 1), np.float32)
    tasks = FewShot(points, np.arange(400_000) % 2, ways=2, shots=0, queries=20, balance="random")
    share = (tasks.sample(4_000, rng()).query.y == 0).double().mean(1)
    # With two classes, the proportion is uniform in [0, 1] and the number of examples uniform in 0 .. 40.
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(share.var()) == pytest.approx(42 / 40 / 12, abs=0.005)


def test_small_classes_are_not_exceeded() -> None:
    labels = np.repeat(np.arange(4), (1, 1, 1, 17))
    points = np.stack([np.arange(20), labels], 1).astype(np.float32)
    for balance in ("random", "own"):
        tasks = FewShot(points, labels, ways=4, shots=2, queries=3, balance=balance)
        episode = tasks.sample(20, rng())
        check(episode)
        assert episode.support is not None
        everything = counts(torch.cat([episode.support.y, episode.query.y], 1))
        assert torch.equal(everything.sort(1).values, torch.tensor([[1, 1, 1, 17]]).expand(20, 4))


def test_several_tasks_of_the_same_classes() -> None:
    tasks = family(ways=2, tasks_per_class_set=3)
    episode = tasks.sample(7, rng())
    check(episode)
    assert episode.task is not None
    ids = [tuple(row) for row in episode.task.tolist()]
    assert len(set(ids[:3])) == len(set(ids[3:6])) == 1 and len(set(ids)) > 1
    assert not torch.equal(episode.query.x[0], episode.query.x[1])
    images = FewShot(
        np.zeros((80, 4, 4), np.uint8),
        LABELS,
        ways=2,
        rotations="classes",
        queries=2,
        tasks_per_class_set=8,
    )
    task = images.sample(16, rng()).task
    assert task is not None and len({tuple(row) for row in task.tolist()}) == 2
    assert tasks.sample(0, rng()).query.x.shape == (0, 6, 2)


def test_unequal_tasks_train_and_match_class_means() -> None:
    episode = family(balance="random", ways=3).sample(4, rng())
    model = nets.mlp(2, 8, 3)
    for recipe in (recipes.maml(), recipes.protonet()):
        meta_backward(model, recipe, episode, FewShot.loss)
        assert evaluate(model, recipe, episode, FewShot.loss).values.isfinite().all()
    assert episode.support is not None
    x, y = (part[1] for part in episode.support)
    support = (x, y)
    adapted = adapters.Prototype()(model, support, FewShot.loss, task=episode.task[1])  # type: ignore[arg-type, index]
    features = model.body(x)
    means = torch.stack([features[y == way].mean(0) for way in range(3)])
    torch.testing.assert_close(adapted["head.weight"], 2 * means)


def test_tasks_without_a_support_set() -> None:
    episode = family(shots=0, queries=2).sample(3, rng())
    assert episode.support is None and episode.query.y.tolist() == 3 * [[0, 0, 1, 1, 2, 2, 3, 3]]
    model = nets.mlp(2, 8, 4)
    assert meta_backward(model, recipes.joint(), episode, FewShot.loss).losses.shape == (3,)
    with pytest.raises(ValueError, match="support"):
        meta_backward(model, Recipe(adapters.Gradient(1)), episode, FewShot.loss)


def test_sentences_without_a_support_set(tiny: Path) -> None:
    domains = Clinc150(ways=2, shots=0, queries=3, data_dir=tiny).split("train")
    episode = domains.sample(3, rng())
    assert episode.support is None and episode.query.x["mask"].shape[:2] == (3, 6)
    supports = Clinc150(ways=2, shots=3, queries=0, data_dir=tiny).split("train").sample(3, rng())
    assert supports.support is not None and supports.support.x["mask"].shape[:2] == (3, 6)
    assert supports.query.x["mask"].shape[:2] == (3, 0) and supports.query.y.shape == (3, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": "equl"}, "balance='equl' is not one of 'equal', 'random', 'own'"),
        ({"balance": "own", "queries": 19}, "need 84 examples in total .* smallest classes have 80"),
        ({"balance": "random", "queries": 19}, "need 84 examples in total"),
        ({"balance": "own", "classes": [0, 1, 2, 9]}, "at least one each"),
        ({"tasks_per_class_set": 0}, "tasks_per_class_set=0: each must be at least 1"),
        ({"shots": 0, "queries": 0}, "shots=0, queries=0: a task needs at least one example"),
        ({"shots": -1}, "shots=-1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family(**options)
