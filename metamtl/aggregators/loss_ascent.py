"""Weights that climb where the loss is high: on the simplex, and raw."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import LossWeighting


class LossAscent(LossWeighting):
    """`w_t <- w_t exp(rate L_t)`, brought back to sum one; the direction is `sum_t w_t g_t`. Scale: mean.

    The exponentiated form of `w_t += rate L_t`, projected onto the simplex: gradient ascent on
    `min_theta max_w sum_t w_t L_t(theta)`, as in group DRO, Sagawa et al. 2020,
    https://arxiv.org/abs/1911.08731. The tasks of the largest loss end up with all the weight.

    Args:
        rate: step size of the weights, for each unit of loss.

    >>> ascent = LossAscent(rate=1.0)
    >>> for _ in range(3):
    ...     direction = ascent(torch.tensor([1.0, 2.0]), torch.eye(2))
    >>> direction
    tensor([0.0474, 0.9526])
    """

    scale = "mean"
    memory = ("log_weights",)

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        self.rate = rate

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        losses = losses.detach()
        start = torch.full_like(losses, -math.log(len(losses)))
        log_weights = (self.recall("log_weights", start) + self.rate * losses).log_softmax(0)
        self.log_weights = log_weights
        return log_weights.exp()


class RawLossAscent(LossWeighting):
    """`w_t <- w_t + rate L_t`, from `1/T`, and never brought back. Here to be compared with; it diverges.

    Ascent on `sum_t w_t L_t` in w without a bound. Where tasks conflict no loss reaches zero, so after k
    calls the weights sum to `1 + rate k T m` or more, m the smallest mean loss that can be had. The
    optimizer's step grows with them, and no learning rate is small enough for ever: once learning rate
    times weights times curvature passes 2, descent moves away from the minimum, losses and weights grow
    together, and numbers overflow. Where every loss can reach zero the weights stay bounded, and it
    converges. Scale: own, growing from the mean.

    Args:
        rate: step size of the weights, for each unit of loss.

    >>> ascent = RawLossAscent(rate=1.0)
    >>> for _ in range(3):
    ...     direction = ascent(torch.tensor([1.0, 2.0]), torch.eye(2))
    >>> direction
    tensor([3.5000, 6.5000])
    """

    memory = ("task_weights",)

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        self.rate = rate

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        losses = losses.detach()
        start = torch.full_like(losses, 1 / len(losses))
        self.task_weights = self.recall("task_weights", start) + self.rate * losses
        return self.task_weights
