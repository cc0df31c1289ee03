"""Conflict between tasks by layer, and where to split a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .gradients import Gradients
from .result import Result, axes, heatmap


@dataclass(frozen=True)
class Conflict(Result):
    """The cosines of the tasks' gradients in every layer.

    Attributes:
        tasks: the names of the tasks.
        layers: from the first layer to the last, in the order of the model's parameters.
        cosines: `[L, T, T]`, in double precision on the CPU; a mean over training steps if n > 1.
        error: the standard error of a cosine if the gradients are sketched; None if they are exact.
        n: number of training steps.
    """

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    cosines: Tensor = field(repr=False)
    error: float | None = None
    n: int = 1

    @property
    def angles(self) -> Tensor:
        """The angles in degrees, `[L, T, T]`; above 90 the tasks conflict."""
        return torch.rad2deg(self.cosines.clamp(-1, 1).acos())

    @property
    def pairs(self) -> Tensor:
        """The cosines of the pairs of different tasks, `[L, T (T - 1) / 2]`."""
        i, j = torch.triu_indices(len(self.tasks), len(self.tasks), 1)
        return self.cosines[:, i, j]

    def most_conflicting(self, k: int = 3) -> tuple[str, ...]:
        """The k layers with the lowest mean cosine over pairs, the lowest first."""
        order = self.pairs.mean(1).argsort()[:k].tolist()
        return tuple(self.layers[i] for i in order)

    @staticmethod
    def mean(results: Sequence[Conflict]) -> Conflict:
        """The mean over training steps.

        Raises:
            ValueError: there is no result, or tasks or layers differ.
        """
        if not results or any(
            (r.tasks, r.layers) != (results[0].tasks, results[0].layers) for r in results
        ):
            raise ValueError("a mean needs at least one Conflict, all of the same tasks and layers.")
        errors = [r.error for r in results if r.error is not None]
        error = sum(e**2 for e in errors) ** 0.5 / len(results) if errors else None
        cosines = torch.stack([r.cosines for r in results]).mean(0)
        return Conflict(results[0].tasks, results[0].layers, cosines, error, len(results))

    def branches(self, threshold: float = 0.0) -> Branches:
        """Suggest which tasks share which layers: a tree that splits where tasks conflict.

        From the first layer to the last, the tasks of each branch are clustered by average linkage: groups
        are merged as long as the mean cosine between two of them is at least `threshold`. A branch never
        merges again. It is a heuristic: train the result, and compare it with the shared network.

        Raises:
            ValueError: `threshold` is not between -1 and 1.
        """
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: pass a cosine, from -1 to 1.")
        groups, tree = [list(range(len(self.tasks)))], []
        for cosines in self.cosines:
            groups = [part for group in groups for part in _clusters(cosines, group, threshold)]
            tree.append(tuple(tuple(self.tasks[i] for i in group) for group in groups))
        return Branches(self.layers, tuple(tree))

    def scalars(self) -> dict[str, float]:
        """For every layer the mean cosine and the fraction of pairs in conflict."""
        means = zip(self.layers, self.pairs.mean(1).tolist())
        fractions = zip(self.layers, (self.pairs < 0).double().mean(1).tolist())
        return {
            **{f"cosine/{layer}": value for layer, value in means},
            **{f"conflicts/{layer}": value for layer, value in fractions},
        }

    def plot(self, ax: Any = None) -> Any:
        """The cosine of every pair in every layer."""
        i, j = torch.triu_indices(len(self.tasks), len(self.tasks), 1).tolist()
        pairs = tuple(f"{self.tasks[a]}, {self.tasks[b]}" for a, b in zip(i, j))
        return heatmap(ax, self.pairs, self.layers, pairs, "cosines by layer")


@dataclass(frozen=True)
class Branches(Result):
    """Which tasks share each layer.

    Attributes:
        layers: from the first layer to the last.
        groups: for each layer the groups of tasks that share it.
    """

    layers: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def nodes(self) -> list[int]:
        """The number of groups in each layer: the argument `nodes` of `nets.Branching`."""
        return [len(groups) for groups in self.groups]

    @property
    def split(self) -> str | None:
        """The first layer that not all tasks share; None if all layers are shared."""
        return next((layer for layer, count in zip(self.layers, self.nodes) if count > 1), None)

    def scalars(self) -> dict[str, float]:
        return {layer: float(count) for layer, count in zip(self.layers, self.nodes)}

    def plot(self, ax: Any = None) -> Any:
        """The number of branches in each layer."""
        ax = axes(ax)
        ax.step(range(len(self.layers)), self.nodes, where="mid")
        ax.set_xticks(range(len(self.layers)), self.layers, rotation=90)
        ax.set_ylabel("branches")
        return ax.figure


def conflict(grads: Gradients) -> Conflict:
    """Compute the cosines between tasks in every layer.

    `History` shows them over time; `Conflict.mean` averages over training steps. Conflicting gradients:
    Yu et al. 2020, https://arxiv.org/abs/2001.06782; layers to share or not by conflict: Shi et al. 2023,
    https://arxiv.org/abs/2302.11289.

    Args:
        grads: the gradients of at least two tasks; with `layers=[...]` for larger layers than modules.

    Raises:
        ValueError: there is one row only, or the gradient of a task is zero in a layer.

    >>> from metamtl import analysis, nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 8, 1)
    >>> episodes = family.sample(3, torch.Generator().manual_seed(0))
    >>> result = conflict(analysis.gradients(model, recipes.joint(), episodes, family.loss))
    >>> result.layers, len(result.branches().nodes)
    (('body.0', 'body.2', 'head'), 3)
    """
    if len(grads.tasks) < 2:
        raise ValueError(
            f"conflict compares tasks, but there is only {grads.tasks[0]!r}; pass at least two."
        )
    cosines = torch.stack([grads.cosines(layer) for layer in grads.layers])
    return Conflict(grads.tasks, tuple(grads.layers), cosines, grads.error)


def _clusters(cosines: Tensor, group: list[int], threshold: float) -> list[list[int]]:
    """Agglomerative clustering of a group by average linkage."""
    clusters = [[task] for task in group]
    while len(clusters) > 1:
        links = [
            (float(cosines[a][:, b].mean()), i, j)
            for i, a in enumerate(clusters)
            for j, b in enumerate(clusters[:i])
        ]
        link, i, j = max(links)
        if link < threshold:
            break
        clusters[j] = sorted(clusters[j] + clusters.pop(i))
    return clusters
