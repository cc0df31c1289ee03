"""Gradients of comparable norm, longer where a task lags behind."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import LossWeighting, check_positive


class GradNorm(LossWeighting):
    """GradNorm: weights that bring the norms of the weighted gradients to a common target.

    Chen, Badrinarayanan, Lee, Rabinovich 2018, https://arxiv.org/abs/1711.02257. With `G_t = w_t |g_t|` and
    `r_t = (L_t / L_t(0)) / mean_s(L_s / L_s(0))`, the weights descend `sum_t |G_t - mean(G) r_t^alpha|`,
    the target held constant; then they are scaled to sum to T. Scale: sum.

    The weights have an update of their own, beside the model's, as in the paper: a call returns the weights
    of the previous one and then moves them.

    Differs from the paper in: 1. norms are over all the rows' columns, not one layer; 2. the step of the
    weights is measured in the mean norm of the gradients, so that `rate` means the same for any scale of
    the losses; 3. no weight falls below 1e-6.

    Args:
        alpha: how strongly tasks that lag behind are pulled; 0 asks for equal norms.
        rate: step size of the weights.

    Raises:
        ValueError: a loss of zero or less.

    >>> balance = GradNorm(alpha=0.0)
    >>> for _ in range(200):
    ...     direction = balance(torch.ones(2), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> direction.round(decimals=1)
    tensor([1.5000, 1.5000])
    """

    scale = "sum"
    reads = "gramian"
    memory = ("task_weights", "first")

    def __init__(self, alpha: float = 1.5, *, rate: float = 0.025) -> None:
        super().__init__()
        self.alpha, self.rate = alpha, rate

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        check_positive("GradNorm", losses)
        assert gradients is not None
        losses, norms = losses.detach(), gradients.detach().norm(dim=1)
        weights = self.recall("task_weights", torch.ones_like(losses))
        first = self.recall("first", losses)
        pace = losses / first
        lengths = weights * norms
        target = lengths.mean() * (pace / pace.mean()) ** self.alpha
        unit = norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        moved = (weights - self.rate * (lengths - target).sign() * norms / unit).clamp(min=1e-6)
        self.task_weights, self.first = moved * len(moved) / moved.sum(), first.clone()
        return weights
