"""AdaTask: adaptive learning rates for every task and parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Aggregator


class AdaTask(Aggregator):
    """AdaTask: separate Adam moments for each task, so that no task dominates the others.

    Formula: `d = sum_t m_t / (sqrt(v_t) + eps)`, entry by entry, with `m_t` and `v_t` the bias-corrected
    running means of `g_t` and `g_t^2`.

    Yang et al. 2023, https://arxiv.org/abs/2211.15055. A single Adam for all tasks divides by moments
    that the largest gradient dominates.

    Scale: own; every task adds entries of about one, independent of its loss. Use plain `torch.optim.SGD`
    with a learning rate suitable for Adam. The state is two matrices `[T, n]`.

    >>> adapt = AdaTask()
    >>> adapt(torch.ones(2), torch.tensor([[1000.0, 1.0], [0.0, 0.5]])).round(decimals=4)
    tensor([1., 2.])
    """

    state_names = ("first", "second")
    by_parameter = True
    reads = "columns"
    calls: Tensor

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), *, eps: float = 1e-8) -> None:
        super().__init__()
        self.betas, self.eps = betas, eps
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        rows, (beta1, beta2) = rows.detach(), self.betas
        self.first = torch.lerp(rows, self.get_state("first", torch.zeros_like(rows)), beta1)
        self.second = torch.lerp(rows.square(), self.get_state("second", torch.zeros_like(rows)), beta2)
        self.calls = self.calls + 1
        calls = int(self.calls)
        first, second = self.first / (1 - beta1**calls), self.second / (1 - beta2**calls)
        return (first / (second.sqrt() + self.eps)).sum(0)
