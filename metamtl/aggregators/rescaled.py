"""Any aggregator, at a common norm."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Aggregator


class Rescaled(Aggregator):
    """The direction of `inner`, as long as the mean gradient: `|mean_t g_t| d / |d|`. Scale: mean.

    Aggregators differ in length as much as in direction (a sum is T times a mean), so at one learning rate
    they are not compared alike; rescaled, they are. A zero direction stays zero.

    Args:
        inner: the aggregator; its parameters and state are part of this one's.
        norm: "mean", or a number, the length of every direction (scale: own).

    >>> from metamtl import aggregators
    >>> rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> Rescaled(aggregators.Sum())(torch.ones(2), rows)
    tensor([1., 1., 1.])
    """

    def __init__(self, inner: Aggregator, norm: str | float = "mean") -> None:
        super().__init__()
        if norm != "mean" and (isinstance(norm, str) or not norm > 0):
            raise ValueError(
                f"norm={norm!r}: give 'mean', for that of the mean gradient, or a length above 0."
            )
        self.inner, self.norm = inner, norm
        self.scale = "mean" if norm == "mean" else "own"
        self.by_parameter = inner.by_parameter

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}"

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        direction = self.inner(losses, rows)
        wanted = rows.detach().mean(0).norm() if isinstance(self.norm, str) else self.norm
        length = direction.norm()
        return direction * torch.where(length > 0, wanted / length, 0.0)
