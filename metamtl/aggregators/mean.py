"""Equal weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import LossWeighting


class Mean(LossWeighting):
    """The mean of the gradients, which is the gradient of the mean loss. Scale: mean.

    Formula: `d = 1/T sum_t g_t`.

    >>> import torch
    >>> Mean()(torch.ones(2), torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]))
    tensor([1., 1., 1.])
    """

    scale = "mean"

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        return torch.full_like(losses.detach(), 1 / len(losses))
