"""From a matrix of relatedness to groups of tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .relatedness import Relatedness
from .result import Result, heatmap

MOST_TASKS = 14  # of the exact search; the time is proportional to 3^T


@dataclass(frozen=True)
class Grouping(Result):
    """Groups of tasks, each of which is trained as one model.

    Attributes:
        groups: the tasks of each group; the groups in the order of their first tasks.
        score: sum over tasks of the mean relatedness of the other tasks of its group to it; 0 for a task
            that is alone.
        relatedness: the matrix from which the groups were made.
    """

    groups: tuple[tuple[str, ...], ...]
    score: float
    relatedness: Relatedness = field(repr=False)

    @property
    def labels(self) -> tuple[int, ...]:
        """The index of each task's group, in the order of the tasks of the matrix."""
        of = {task: index for index, group in enumerate(self.groups) for task in group}
        return tuple(of[task] for task in self.relatedness.tasks)

    def scalars(self) -> dict[str, float]:
        return {"score": self.score, "groups": float(len(self.groups))}

    def plot(self, ax: Any = None) -> Any:
        """The matrix with the tasks in the order of the groups; without the diagonal, which has no role."""
        order = [self.relatedness.tasks.index(task) for group in self.groups for task in group]
        names = tuple(self.relatedness.tasks[i] for i in order)
        matrix = self.relatedness.matrix[order][:, order].fill_diagonal_(torch.nan)
        title = f"{self.relatedness.measure}, {len(self.groups)} groups"
        return heatmap(ax, matrix, names, names, title)


def spectral_groups(relatedness: Relatedness, groups: int, seed: int = 0) -> Grouping:
    """Spectral clustering of the tasks, by scikit-learn.

    The similarities are the symmetric part of the matrix, scaled so that its smallest entry outside of the
    diagonal is 0 and the largest 1.

    Args:
        relatedness: any matrix; a larger entry means more related.
        groups: the number of groups.
        seed: of the clustering.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: there are not between 2 and T groups, or all pairs of tasks are equally related.

    >>> block = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    >>> spectral_groups(Relatedness(block, ("a", "b", "c", "d"), "cosine"), groups=2).groups
    (('a', 'b'), ('c', 'd'))
    """
    try:
        from sklearn.cluster import SpectralClustering
    except ImportError as error:
        raise ImportError(
            f"spectral_groups needs scikit-learn, which cannot be imported ({error});"
            " pip install 'metamtl[analysis]'."
        ) from error
    count = len(relatedness.tasks)
    if isinstance(groups, bool) or not isinstance(groups, int) or not 2 <= groups <= count:
        raise ValueError(f"groups={groups!r}: pass a number from 2 to {count}, the number of tasks.")
    if groups == count:
        return _grouping(relatedness, list(range(count)))
    similarity = relatedness.symmetric()
    off_diagonal = similarity[~torch.eye(count, dtype=torch.bool)]
    low, high = float(off_diagonal.min()), float(off_diagonal.max())
    if not high > low:
        raise ValueError(
            f"all pairs of tasks have the same {relatedness.measure}, {low}; there are no groups to find."
        )
    scaled = ((similarity - low) / (high - low)).fill_diagonal_(1.0).clamp(1e-6, 1.0)
    clustering = SpectralClustering(groups, affinity="precomputed", random_state=seed)
    return _grouping(relatedness, clustering.fit_predict(scaled.numpy()).tolist())


def best_groups(relatedness: Relatedness, models: int) -> Grouping:
    """The partition of the tasks into at most `models` groups with the highest score, by exact search.

    The score is the sum over tasks of the mean relatedness of the other tasks of its group to it; a task
    alone has 0. It is the selection of TAG (Fifty et al. 2021, https://arxiv.org/abs/2109.04617). Dynamic
    programming over subsets, `O(models 3^T)`.

    Differs from the paper in: 1. a task belongs to one group; 2. a task that is alone has affinity 0.

    Args:
        relatedness: entry (i, j) is the benefit of task i for task j, such as `look_ahead`.
        models: the budget: the largest number of groups.

    Raises:
        ValueError: `models` is less than 1, or there are more than 14 tasks; use `spectral_groups`.

    >>> matrix = torch.tensor([[0.0, 1.0, -1.0], [1.0, 0.0, -1.0], [-1.0, -1.0, 0.0]])
    >>> best_groups(Relatedness(matrix, ("a", "b", "c"), "affinity"), models=2).groups
    (('a', 'b'), ('c',))
    """
    count = len(relatedness.tasks)
    if isinstance(models, bool) or not isinstance(models, int) or models < 1:
        raise ValueError(f"models={models!r}: pass the number of models that can be trained, at least 1.")
    if count > MOST_TASKS:
        raise ValueError(
            f"there are {count} tasks, and the exact search takes time proportional to 3^{count}; use"
            f" spectral_groups, or at most {MOST_TASKS} tasks."
        )
    values, full = _subset_scores(relatedness.matrix), 2**count - 1
    best = [values]  # best[m][s]: the highest score of the tasks in s with at most m + 1 groups
    first = [list(range(2**count))]  # the group that has the first task of s
    for _ in range(min(models, count) - 1):
        scores, choice = list(best[-1]), list(first[-1])
        for subset in range(1, full + 1):
            lowest, group = subset & -subset, subset
            rest = subset ^ lowest
            part = (rest - 1) & rest if rest else 0
            while rest:
                group = part | lowest
                score = values[group] + best[-1][subset ^ group]
                if score > scores[subset] + 1e-12:
                    scores[subset], choice[subset] = score, group
                if part == 0:
                    break
                part = (part - 1) & rest
        best.append(scores)
        first.append(choice)
    labels, subset, level = [0] * count, full, len(best) - 1
    while subset:
        while level and best[level - 1][subset] >= best[level][subset]:
            level -= 1  # fewer groups are as good
        group = first[level][subset]
        for task in range(count):
            if group >> task & 1:
                labels[task] = group
        subset, level = subset ^ group, max(level - 1, 0)
    return _grouping(relatedness, labels)


def _subset_scores(matrix: Tensor) -> list[float]:
    """The score of every subset of tasks as one group, indexed by its bits."""
    count = len(matrix)
    masks = torch.arange(2**count)
    members = (masks[:, None] >> torch.arange(count) & 1).double()
    received = members @ (matrix - torch.diag(matrix.diagonal()))  # of task j from the members
    sizes = (members.sum(1) - 1).clamp(min=1)
    return ((received * members).sum(1) / sizes).tolist()


def _grouping(relatedness: Relatedness, labels: list[int]) -> Grouping:
    groups: dict[int, list[str]] = {}
    for task, label in zip(relatedness.tasks, labels):
        groups.setdefault(label, []).append(task)
    score = 0.0
    for members in groups.values():
        index = [relatedness.tasks.index(task) for task in members]
        part = relatedness.matrix[index][:, index]
        if len(index) > 1:
            score += float((part.sum() - part.trace()) / (len(index) - 1))
    return Grouping(tuple(tuple(group) for group in groups.values()), score, relatedness)
