"""Any aggregator, rescaled to a common norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Aggregator, weighted


class Rescaled(Aggregator):
    """The direction of `inner` with the norm of the mean gradient: `|mean_t g_t| d / |d|`. Scale: mean.

    Directions differ in norm (a sum is T times a mean), so one learning rate has different effects.
    Rescaled aggregators can be compared at one learning rate. A zero direction stays zero.

    If `inner` weights losses, so does this aggregator: the factor multiplies the weights, and therefore
    also the gradients of task-specific parameters. `Rescaled(Sum())` equals `Mean()` for every parameter.

    Args:
        inner: the aggregator; its parameters and state are part of this aggregator.
        norm: "mean", or a number, the norm of every direction (scale: own).

    >>> from metamtl import aggregators
    >>> rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> Rescaled(aggregators.Sum())(torch.ones(2), rows)
    tensor([1., 1., 1.])
    """

    def __init__(self, inner: Aggregator, norm: str | float = "mean") -> None:
        super().__init__()
        if norm != "mean" and (isinstance(norm, str) or not norm > 0):
            raise ValueError(
                f"norm={norm!r}: pass 'mean', the norm of the mean gradient, or a number above 0."
            )
        self.inner, self.norm = inner, norm
        self.scale = "mean" if norm == "mean" else "own"
        self.by_parameter = inner.by_parameter
        self.reads = "gramian" if inner.reads in ("losses", "gramian") else "rows"

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}"

    def arrange(self, tasks: Sequence[str] | None, num_tasks: int) -> list[int] | None:
        return self.inner.arrange(tasks, num_tasks)

    def bind(self, tasks: Sequence[str] | None, num_tasks: int) -> None:
        self.inner.bind(tasks, num_tasks)

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor | None:
        weights = self.inner.weights(losses, gradients)
        if weights is None:
            return None
        assert gradients is not None
        return weights * self._factor(weighted(weights, gradients), gradients).to(weights)

    def forward(self, losses: Tensor, gradients: Tensor) -> Tensor:
        direction = self.inner(losses, gradients)
        return direction * self._factor(direction, gradients)

    def _factor(self, direction: Tensor, gradients: Tensor) -> Tensor:
        length = direction.norm()
        target = gradients.detach().mean(0).norm() if isinstance(self.norm, str) else self.norm
        return torch.where(length > 0, target / length, 0.0)
