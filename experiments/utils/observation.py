"""What a training writes for TensorBoard, and how it looks at the gradients of the tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from metamtl import Estimate, Outcome, Recipe
from metamtl.aggregators import Aggregator
from metamtl.aggregators.base import Combined
from metamtl.analysis import Relatedness
from metamtl.functional.gramian import gramian

from .processes import is_distributed, is_first

log = logging.getLogger(__name__)


class Observer(Aggregator):
    """The aggregator `inner`, with the same result, which keeps the weights and the gradients' conflict.

    Attributes:
        scalars: of the last call: the mean and the minimum of the cosines between the gradients of two
            tasks, and the mean of the norms of the tasks' gradients. Empty without shared parameters.
        gramian: of the last call, of the tasks' gradients, `[T, T]`; None without shared parameters.
        task_weights: of the last call, the weights of the losses `[T]`; None if `inner` has none.
    """

    observes = True

    def __init__(self, inner: Aggregator) -> None:
        super().__init__()
        self.inner, self.name, self.by_parameter = inner, inner.name, inner.by_parameter
        # With several processes, only an aggregator that reads the gradients receives them.
        self.reads = "gramian" if is_distributed() and inner.reads == "losses" else inner.reads
        self.scalars: dict[str, float] = {}
        self.gramian: Tensor | None = None
        self.task_weights: Tensor | None = None

    def forward(self, losses: Tensor, gradients: Tensor) -> Tensor:
        return self.inner(losses, gradients)  # type: ignore[no-any-return]

    def combine(
        self, losses: Tensor, gradients: Tensor | None, tasks: Sequence[str] | None = None
    ) -> Combined:
        combined: Combined = self.inner.combine(losses, gradients, tasks)
        self.task_weights = combined.weights
        self.gramian = None if gradients is None else gramian(gradients.detach())
        self.scalars = {} if self.gramian is None else conflict(self.gramian)
        return combined

    def relatedness(self, tasks: Sequence[str] | None) -> Relatedness | None:
        """The cosines of the last call, of tasks whose gradient is not zero; None with fewer than two."""
        if self.gramian is None:
            return None
        names = tuple(map(str, range(len(self.gramian)))) if tasks is None else tuple(tasks)
        matrix, moving = cosines(self.gramian)
        names = tuple(name for name, moves in zip(names, moving.tolist()) if moves)
        return Relatedness(matrix, names, "cosine") if len(names) > 1 else None


def cosines(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines of the M rows that are not zero, `[M, M]`, and which of the T rows they are, `[T]`."""
    norms = gramian.diagonal().sqrt()
    moving = norms > 0
    matrix = gramian[moving][:, moving] / torch.outer(norms[moving], norms[moving])
    return matrix.clamp(-1, 1), moving


def heat_image(matrix: Tensor, pixels: int = 16) -> Tensor:
    """Cosines as an image `[3, H, W]`: 1 is blue, 0 white, -1 red. A plot would take 100 times as long.

    >>> heat_image(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), pixels=1)[:, 0].T.tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.5, 0.5]]
    """
    positive, negative = matrix.float().clamp(0, 1), (-matrix).float().clamp(0, 1)
    image = torch.stack([1 - positive, 1 - positive - negative, 1 - negative])
    return image.repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)


def conflict(gramian: Tensor) -> dict[str, float]:
    """Cosines between gradients, and the mean of their norms, from `[T, T]`. Zeros have no cosine.

    >>> conflict(gramian(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])))
    {'gradient_norm/tasks': 1.333..., 'cosine/mean': -0.333..., 'cosine/min': -1.0}
    """
    scalars = {"gradient_norm/tasks": float(gramian.diagonal().sqrt().mean())}
    matrix, _ = cosines(gramian)
    if len(matrix) > 1:
        pairs = matrix[torch.ones_like(matrix, dtype=torch.bool).triu(1)]
        scalars |= {"cosine/mean": float(pairs.mean()), "cosine/min": float(pairs.min())}
    return scalars


class TensorBoard:
    """The TensorBoard log of a training; only the first process writes.

    Args:
        folder: of the training.
        step: the number of steps so far; what was logged after them is replaced.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=step) if is_first() else None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.writer is not None:
            self._attempt(self.writer.close)

    def step(
        self, step: int, outcome: Outcome, observer: Observer, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log a training step, before the step of the optimizer."""
        losses = outcome.losses.detach()
        scalars = {"loss/train": float(losses.mean()), **observer.scalars}
        if outcome.tasks is None:  # other tasks in each step
            scalars |= {"loss/best_task": float(losses.min()), "loss/worst_task": float(losses.max())}
        names = outcome.tasks or ()
        scalars |= {f"loss/{name}": value for name, value in zip(names, losses.tolist())}
        weights = observer.task_weights
        if weights is not None:
            scalars |= {f"weight/{name}": value for name, value in zip(names, weights.tolist())}
            if not names:
                scalars |= {"weight/min": float(weights.min()), "weight/max": float(weights.max())}
        groups = optimizer.param_groups
        grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        if grads:
            scalars["gradient_norm/update"] = float(torch.nn.utils.get_total_norm(grads))
        for index, group in enumerate(groups):
            scalars["learning_rate" if len(groups) == 1 else f"learning_rate/{index}"] = float(group["lr"])
        self._add(scalars, step)

    def relatedness(self, step: int, outcome: Outcome, observer: Observer) -> None:
        """Log the cosines between the gradients of the tasks as an image, and by name for named tasks."""
        found = observer.relatedness(outcome.tasks)
        if found is None or self.writer is None:
            return
        if outcome.tasks is not None:
            for i, first in enumerate(found.tasks):
                pairs = {
                    f"cosine/{first}, {second}": found[first, second] for second in found.tasks[i + 1 :]
                }
                self._add(pairs, step)
        if self.writer is not None:
            self._attempt(self.writer.add_image, "relatedness", heat_image(found.matrix), step)

    def estimates(self, kind: str, step: int, estimates: Mapping[str, Estimate]) -> None:
        """Log metrics with the ends of their 95 % intervals, after a validation or the test."""
        scalars: dict[str, float] = {}
        for name, estimate in estimates.items():
            tag = f"{kind}/{name}"
            scalars[tag] = estimate.mean
            if estimate.n > 1:
                scalars |= {
                    f"{tag}/low": estimate.mean - estimate.ci95,
                    f"{tag}/high": estimate.mean + estimate.ci95,
                }
        self._add(scalars, step)
        if self.writer is not None:
            self._attempt(self.writer.flush)

    def _add(self, scalars: Mapping[str, float], step: int) -> None:
        for tag, value in scalars.items():
            if self.writer is not None:
                self._attempt(self.writer.add_scalar, tag, value, step)

    def _attempt(self, write: Any, *args: Any) -> None:
        """Write; if the disk does not take it, the training goes on without the log, and says so."""
        try:
            write(*args)
        except OSError as error:
            self.writer = None
            log.warning("the TensorBoard log ends here, because it cannot be written: %s", error)


def observed(recipe: Recipe) -> tuple[Recipe, Observer]:
    """The same recipe with an observer of its aggregator."""
    observer = Observer(recipe.aggregator)
    return replace(recipe, aggregator=observer), observer
