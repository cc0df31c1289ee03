"""Losses balanced by their logarithm, gradients by their length."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Aggregator, check_positive


class DBMTL(Aggregator):
    """Dual balancing: gradients of the log-losses, smoothed, all as long as the longest, summed.

    Lin et al. 2023, https://arxiv.org/abs/2308.12029. With `u_t = g_t / L_t` and the running mean
    `m_t <- u_t + beta / k^sigma (m_t - u_t)` at call k, `d = max_s |m_s| sum_t m_t / |m_t|`. Scale: own,
    the sum of T rows of the longest one's norm, in units of the losses. A task whose gradient is zero adds
    nothing. Remembers a matrix `[T, n]`.

    Differs from the authors' code in: the running mean starts at the first rows, not at zero.

    Raises:
        ValueError: a loss of zero or less.

    >>> DBMTL()(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    tensor([3., 3.])
    """

    memory = ("average",)
    by_parameter = True
    calls: Tensor

    def __init__(self, beta: float = 0.9, *, sigma: float = 0.5) -> None:
        super().__init__()
        self.beta, self.sigma = beta, sigma
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        check_positive("DBMTL", losses)
        found = rows.detach() / losses.detach().to(rows)[:, None]
        keep = self.beta / (int(self.calls) + 1) ** self.sigma
        self.average = found + keep * (self.recall("average", found) - found)
        self.calls = self.calls + 1
        norms = self.average.norm(dim=1)
        return torch.where(norms > 0, norms.max() / norms, 0.0) @ self.average
