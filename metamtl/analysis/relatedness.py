"""A labeled matrix that relates tasks, and the measures that follow from per-task gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..estimate import student_t
from .arguments import check_lr
from .gradients import Gradients
from .result import Result, heatmap


@dataclass(frozen=True)
class Relatedness(Result):
    """How task i (row) affects task j (column).

    Attributes:
        matrix: `[T, T]`, in double precision on the CPU.
        tasks: the names of the rows and columns.
        measure: the name of the measure.
        error: the standard error of an entry if the measure is stochastic; None if it is exact.
        ci95: for a mean over training steps, the half width of the 95 % confidence interval, `[T, T]`.
        n: the number of matrices in a mean.

    Raises:
        TypeError: `matrix` is not a tensor.
        ValueError: the matrix is not `[T, T]` for the T tasks, there are fewer than two tasks, names are
            repeated, or a value is not finite.

    >>> r = Relatedness(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), ("a", "b"), "cosine")
    >>> r["a", "b"], r.scalars()["conflicts"]
    (-0.5, 1.0)
    """

    matrix: Tensor = field(repr=False)
    tasks: tuple[str, ...]
    measure: str
    error: float | None = None
    ci95: Tensor | None = field(default=None, repr=False)
    n: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.matrix, Tensor):
            raise TypeError(
                f"Relatedness: the matrix is a {type(self.matrix).__name__}; pass a tensor [T, T]."
            )
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "matrix", self.matrix.detach().double().cpu())
        count = len(self.tasks)
        if count < 2 or len(set(self.tasks)) < count:
            raise ValueError(
                f"Relatedness compares at least two tasks with different names; got {list(self.tasks)}."
            )
        if self.matrix.shape != (count, count):
            raise ValueError(
                f"Relatedness: the matrix has shape {list(self.matrix.shape)}, but there are {count} tasks;"
                f" pass [{count}, {count}]: row i is the effect of task i, column j the task affected."
            )
        if not bool(self.matrix.isfinite().all()):
            i, j = (~self.matrix.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"Relatedness: the entry ({self.tasks[i]!r}, {self.tasks[j]!r}) of {self.measure} is"
                f" {float(self.matrix[i, j])}; look for a loss or a gradient that is not finite, or lower"
                " the learning rate of the step."
            )

    def __getitem__(self, pair: tuple[str, str]) -> float:
        i, j = (self.tasks.index(self._known(task)) for task in pair)
        return float(self.matrix[i, j])

    def _known(self, task: str) -> str:
        if task not in self.tasks:
            raise KeyError(f"no task {task!r}; there are {', '.join(map(repr, self.tasks))}")
        return task

    @property
    def pairs(self) -> Tensor:
        """The entries outside of the diagonal, row by row, `[T (T - 1)]`."""
        return self.matrix[~torch.eye(len(self.tasks), dtype=torch.bool)]

    def symmetric(self) -> Tensor:
        """`(M + M^T) / 2`."""
        return (self.matrix + self.matrix.T) / 2

    @staticmethod
    def mean(results: Sequence[Relatedness]) -> Relatedness:
        """The mean over training steps, with its confidence interval (Student's t over the steps).

        Successive steps of a training depend on each other, so the interval is too narrow if the steps are
        close together.

        Raises:
            ValueError: there is no result, or the tasks or measures differ.
        """
        if not results:
            raise ValueError("the mean needs at least one Relatedness.")
        first = results[0]
        for other in results:
            if (other.tasks, other.measure) != (first.tasks, first.measure):
                raise ValueError(
                    f"a mean needs the same tasks and measure, but there are {first.measure} of"
                    f" {list(first.tasks)} and {other.measure} of {list(other.tasks)}."
                )
        stacked, count, ci95, error = torch.stack([r.matrix for r in results]), len(results), None, None
        if count > 1:
            ci95 = student_t(count - 1) * stacked.std(0) / math.sqrt(count)
        errors = [r.error for r in results if r.error is not None]
        if errors:
            error = math.sqrt(sum(e**2 for e in errors)) / count
        return Relatedness(stacked.mean(0), first.tasks, first.measure, error, ci95, count)

    def scalars(self) -> dict[str, float]:
        """Mean and extremes over pairs of tasks, and the fraction of pairs below zero."""
        pairs = self.pairs
        return {
            "mean": float(pairs.mean()),
            "min": float(pairs.min()),
            "max": float(pairs.max()),
            "conflicts": float((pairs < 0).double().mean()),
        }

    def plot(self, ax: Any = None) -> Any:
        """A heatmap; rows affect columns."""
        return heatmap(ax, self.matrix, self.tasks, self.tasks, self.measure)


def cosine(grads: Gradients, layer: str | None = None) -> Relatedness:
    """The cosines of the per-task gradients, of one layer or of all.

    With a meta-learning recipe they are cosines through the adaptation, with `Recipe(layer=...)` cosines at
    features. Du et al. 2018, https://arxiv.org/abs/1812.02224.

    Raises:
        ValueError: a gradient is zero, there is no such layer, or there is one row only.
    """
    name = "cosine" if layer is None else f"cosine of {layer}"
    return Relatedness(grads.cosines(layer), grads.tasks, name, grads.error)


def cosine_by_layer(grads: Gradients) -> dict[str, Relatedness]:
    """`cosine` of every layer, from the first layer to the last."""
    return {layer: cosine(grads, layer) for layer in grads.layers}


def gramian(grads: Gradients) -> Relatedness:
    """First-order transfer `<g_i, g_j>`: minus the derivative of task j's loss along task i's gradient.

    A sketch has the stated error relative to `|g_i| |g_j|`.
    """
    return Relatedness(grads.gramian(), grads.tasks, "gramian", grads.error)


def transfer(grads: Gradients, lr: float) -> Relatedness:
    """The first-order prediction of `look_ahead`: `lr <g_i, g_j> / L_j`.

    Raises:
        ValueError: the loss of a task is zero.
    """
    lr, losses = check_lr(lr), grads.losses.double().cpu()
    check_nonzero(losses, grads.tasks)
    return Relatedness(lr * grads.gramian() / losses, grads.tasks, "transfer", grads.error)


def check_nonzero(losses: Tensor, tasks: Sequence[str]) -> None:
    """Reject losses of zero, relative to which nothing is defined."""
    zero = [task for task, value in zip(tasks, losses.tolist()) if value == 0]
    if zero:
        raise ValueError(
            f"the losses of tasks {zero} are zero, so a relative change is not defined; exclude these"
            " tasks, or add a constant to their losses."
        )
