"""GradNorm: gradients of similar norm, larger for tasks that learn more slowly."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import LossWeighting, check_positive


class GradNorm(LossWeighting):
    """GradNorm: weights that move the norms of the weighted gradients towards a common target.

    Formula: `d = sum_t w_t g_t`, the `w_t` by gradient steps on `sum_t |w_t |g_t| - m r_t^alpha|`, with `m`
    the mean of all `w_s |g_s|` and `r_t = L_t / L_t(0)`, divided by the mean of these ratios.

    Chen, Badrinarayanan, Lee, Rabinovich 2018, https://arxiv.org/abs/1711.02257. The target is held
    constant, and the weights are scaled to sum to T after each step. Scale: sum.

    As in the paper, the weights are updated separately from the model: a call returns the weights of the
    previous call and then updates them.

    Differs from the paper in: 1. norms are over all columns of the gradients, not over one layer; 2. the
    step of the weights is in units of the mean gradient norm, so that `rate` does not depend on the scale
    of the losses; 3. no weight is below 1e-6.

    Args:
        alpha: how strongly slow tasks are favored; 0 means equal norms.
        rate: step size of the weights.

    Raises:
        ValueError: a loss is zero or negative.

    >>> balance = GradNorm(alpha=0.0)
    >>> for _ in range(200):
    ...     direction = balance(torch.ones(2), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> direction.round(decimals=1)
    tensor([1.5000, 1.5000])
    """

    scale = "sum"
    reads = "gramian"
    state_names = ("task_weights", "first")

    def __init__(self, alpha: float = 1.5, *, rate: float = 0.025) -> None:
        super().__init__()
        self.alpha, self.rate = alpha, rate

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        check_positive("GradNorm", losses)
        assert gradients is not None
        losses, norms = losses.detach(), gradients.detach().norm(dim=1)
        weights = self.get_state("task_weights", torch.ones_like(losses))
        first = self.get_state("first", losses)
        ratios = losses / first
        weighted_norms = weights * norms
        target = weighted_norms.mean() * (ratios / ratios.mean()) ** self.alpha
        unit = norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        step = self.rate * (weighted_norms - target).sign() * norms / unit
        new = (weights - step).clamp(min=1e-6)
        self.task_weights, self.first = new * len(new) / new.sum(), first.clone()
        return weights
