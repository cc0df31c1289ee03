"""DB-MTL: balance losses by their logarithm and gradients by their norm."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Aggregator, check_positive


class DBMTL(Aggregator):
    """Dual balancing: the sum of the smoothed gradients of the log-losses, all scaled to the largest norm.

    Formula: `d = max_s |m_s| sum_t m_t / |m_t|`, with `u_t = g_t / L_t` and the running mean
    `m_t <- u_t + beta / k^sigma (m_t - u_t)` at call k.

    Lin et al. 2023, https://arxiv.org/abs/2308.12029. Scale: own, a sum of T vectors of the largest
    norm, in units of the log-losses. A task whose gradient is zero adds nothing. The state is one matrix
    `[T, n]`.

    Differs from the authors' code in: the running mean starts from the first gradients instead of zero.

    Raises:
        ValueError: a loss is zero or negative.

    >>> DBMTL()(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    tensor([3., 3.])
    """

    state_names = ("average",)
    by_parameter = True
    calls: Tensor

    def __init__(self, beta: float = 0.9, *, sigma: float = 0.5) -> None:
        super().__init__()
        self.beta, self.sigma = beta, sigma
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        check_positive("DBMTL", losses)
        log_grads = rows.detach() / losses.detach().to(rows)[:, None]
        decay = self.beta / (int(self.calls) + 1) ** self.sigma
        self.average = log_grads + decay * (self.get_state("average", log_grads) - log_grads)
        self.calls = self.calls + 1
        norms = self.average.norm(dim=1)
        return torch.where(norms > 0, norms.max() / norms, 0.0) @ self.average
