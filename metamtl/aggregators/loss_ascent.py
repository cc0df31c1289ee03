"""Weights learned by gradient ascent on the losses, on the simplex or without a constraint."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import LossWeighting


class LossAscent(LossWeighting):
    """Weights by exponentiated gradient ascent on the losses, on the simplex. Scale: mean.

    Formula: `d = sum_t w_t g_t`, `w_t <- w_t exp(rate L_t) / Z` with `Z` the sum over tasks.

    Exponentiated gradient ascent, which keeps `w_t += rate L_t` on the simplex, for the weights in
    `min_theta max_w sum_t w_t L_t(theta)`, as in group DRO, Sagawa et al. 2020,
    https://arxiv.org/abs/1911.08731. The tasks with the largest loss finally receive all the weight.

    Args:
        rate: step size of the weights per unit of loss.

    >>> ascent = LossAscent(rate=1.0)
    >>> for _ in range(3):
    ...     direction = ascent(torch.tensor([1.0, 2.0]), torch.eye(2))
    >>> direction
    tensor([0.0474, 0.9526])
    """

    scale = "mean"
    state_names = ("log_weights",)

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        self.rate = rate

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        losses = losses.detach()
        start = torch.full_like(losses, -math.log(len(losses)))
        log_weights = (self.get_state("log_weights", start) + self.rate * losses).log_softmax(0)
        self.log_weights = log_weights
        return log_weights.exp()


class RawLossAscent(LossWeighting):
    """Weights by gradient ascent on the losses, without normalization. A baseline that diverges.

    Formula: `d = sum_t w_t g_t`, `w_t <- w_t + rate L_t`, starting from `1/T`.

    Unconstrained gradient ascent on `sum_t w_t L_t` in w. If tasks conflict, no loss reaches zero, so after
    k calls the weights sum to at least `1 + rate k T m`, with m the minimal mean loss. The step of
    the optimizer grows with the weights, so every learning rate eventually becomes too large: when learning
    rate times weights times curvature exceeds 2, descent moves away from the minimum, losses and weights
    grow together, and values overflow. If every loss can reach zero, the weights stay bounded and descent
    converges. Scale: own, growing from the mean.

    Args:
        rate: step size of the weights per unit of loss.

    >>> ascent = RawLossAscent(rate=1.0)
    >>> for _ in range(3):
    ...     direction = ascent(torch.tensor([1.0, 2.0]), torch.eye(2))
    >>> direction
    tensor([3.5000, 6.5000])
    """

    state_names = ("task_weights",)

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        self.rate = rate

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        losses = losses.detach()
        start = torch.full_like(losses, 1 / len(losses))
        self.task_weights = self.get_state("task_weights", start) + self.rate * losses
        return self.task_weights
