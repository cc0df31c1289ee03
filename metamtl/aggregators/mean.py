"""Equal weights."""

from __future__ import annotations

from torch import Tensor

from .base import Aggregator


class Mean(Aggregator):
    """The mean of the rows, `1/T sum_t g_t`: the gradient of the mean loss. Scale: mean.

    >>> import torch
    >>> Mean()(torch.ones(2), torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]))
    tensor([1., 1., 1.])
    """

    scale = "mean"

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        return rows.mean(0)
