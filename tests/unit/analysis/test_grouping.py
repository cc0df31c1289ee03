"""Groups against brute force and planted clusters; similarity of representations."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, analysis, recipes
from metamtl.analysis import Relatedness


def planted(seed: int) -> tuple[Any, list[int]]:
    """Nine tasks in three hidden clusters, and a net that was not trained.

    The teacher of a task is near one of three orthogonal ones, so that no two clusters are close by chance.
    """
    rng = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(12, 3, generator=rng).double())
    centers = basis.T.reshape(3, 6, 2) * 12**0.5
    labels = torch.arange(9)[torch.randperm(9, generator=rng)] % 3
    teachers = centers[labels] + 0.2 * torch.randn(9, 6, 2, generator=rng).double()
    x = torch.randn(9, 60, 6, generator=rng).double()
    y = x @ teachers + 0.1 * torch.randn(9, 60, 2, generator=rng).double()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2)).double()
    support, query = Batch(x[:, :30], y[:, :30]), Batch(x[:, 30:], y[:, 30:])
    return (model, recipes.maml(steps=1, lr=0.05), Episode(support, query), F.mse_loss), labels.tolist()


def test_planted_clusters_are_recovered_in_all_seeds() -> None:
    for seed in range(20):
        args, labels = planted(seed)
        relatedness = analysis.cosine(analysis.gradients(*args))
        spectral = analysis.spectral_groups(relatedness, groups=3, seed=seed)
        assert adjusted_rand_score(labels, spectral.labels) == 1.0, seed
        centered = Relatedness(relatedness.matrix - relatedness.pairs.mean(), relatedness.tasks, "centered")
        assert adjusted_rand_score(labels, analysis.best_groups(centered, models=3).labels) == 1.0, seed


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for i in range(len(rest)):
            yield [*rest[:i], [items[0], *rest[i]], *rest[i + 1 :]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("models", [1, 2, 3, 6])
def test_best_groups_against_all_partitions(seed: int, models: int) -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double()

    def score(partition: list[list[int]]) -> float:
        return sum(
            float(matrix[i, j]) / (len(group) - 1)
            for group in partition
            for i in group
            for j in group
            if i != j
        )

    expected = max(score(p) for p in partitions(list(range(6))) if len(p) <= models)
    result = analysis.best_groups(Relatedness(matrix, tuple("abcdef"), "affinity"), models)
    assert result.score == pytest.approx(expected) and len(result.groups) <= models
    assert sorted(task for group in result.groups for task in group) == list("abcdef")
    result.plot()


def test_bad_groupings() -> None:
    equal = Relatedness(torch.ones(3, 3), ("a", "b", "c"), "cosine")
    with pytest.raises(ValueError, match="no groups to find"):
        analysis.spectral_groups(equal, groups=2)
    for groups in (1, 4, 2.0):
        with pytest.raises(ValueError, match="from 2 to 3"):
            analysis.spectral_groups(equal, groups=groups)  # type: ignore[arg-type]
    assert analysis.spectral_groups(equal, groups=3).labels == (0, 1, 2)
    with pytest.raises(ValueError, match="at least 1"):
        analysis.best_groups(equal, models=0)
    with pytest.raises(ValueError, match="use spectral_groups"):
        analysis.best_groups(Relatedness(torch.eye(15), tuple(map(str, range(15))), "cosine"), models=2)


def test_cka_of_adapted_representations(batch: SimpleNamespace) -> None:
    recipe, x = recipes.maml(steps=2, lr=0.5), torch.randn(10, 3).double()
    result = analysis.cka(*batch.args(recipe), x, layer="1")
    features = []
    for t in range(4):
        fast = recipe.adapter(batch.model, batch.episodes[t].support, batch.loss)
        hidden = torch.tanh(x @ fast["0.weight"].T + fast["0.bias"]).detach()
        features.append(hidden - hidden.mean(0))
    for i in range(4):
        for j in range(4):
            cross = (features[i].T @ features[j]).norm() ** 2
            own = (features[i].T @ features[i]).norm() * (features[j].T @ features[j]).norm()
            assert result[str(i), str(j)] == pytest.approx(float(cross / own), rel=1e-10)


def test_cka_of_named_tasks(named: SimpleNamespace) -> None:
    x = torch.randn(8, 4).double()
    torch.testing.assert_close(analysis.cka(*named.args, x, "body").matrix, torch.ones(3, 3).double())
    for layer, words in (("z", "names no module"), ("", "names no module"), ("heads.a", "ran 0 times")):
        with pytest.raises(ValueError, match=words):
            analysis.cka(*named.args, x, layer)
    with pytest.raises(ValueError, match="same for all examples"):
        analysis.cka(*named.args, x[:1].expand(4, 4), "body")
    with pytest.raises(ValueError, match="at least three"):
        analysis.cka(*named.args, x[:2], "body")
