"""DWA: weights that depend on how fast each loss decreases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import LossWeighting, check_positive
from .scalarized import slopes

_MEMORY = ("_loss_sum", "_n_batches", "_previous_averages")


class DWA(LossWeighting):
    """Dynamic weight average: larger weights for tasks whose loss decreases more slowly.

    Formula: `d = sum_t w_t g_t`, `w = T softmax(r / temperature)`, with `r_t` the mean loss of the last
    epoch divided by that of the epoch before.

    Liu, Johns, Davison 2019, https://arxiv.org/abs/1803.10704, computed by TorchJD's `DWA`. All weights are
    1 in the first two epochs. Scale: sum.

    Args:
        calls_per_epoch: number of calls in an epoch.
        temperature: larger values make the weights more equal.

    Raises:
        ValueError: a loss is zero or negative.

    >>> dwa = DWA(calls_per_epoch=1)
    >>> for losses in ([4.0, 4.0], [1.0, 4.0], [1.0, 4.0]):
    ...     direction = dwa(torch.tensor(losses), torch.eye(2))
    >>> direction
    tensor([0.8147, 1.1853])
    """

    scale = "sum"
    calls: Tensor

    def __init__(self, calls_per_epoch: int, *, temperature: float = 2.0) -> None:
        super().__init__()
        if calls_per_epoch < 1:
            raise ValueError(f"calls_per_epoch={calls_per_epoch}: an epoch has at least one call.")
        from torchjd import scalarization

        self.inner = scalarization.DWA(temperature)
        self.calls_per_epoch = calls_per_epoch
        self.per_task = True
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), **{name: vars(self.inner)[name] for name in _MEMORY}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        vars(self.inner).update({name: state[name] for name in _MEMORY})

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        check_positive("DWA", losses)
        weights = slopes(self.inner, losses)
        self.calls = self.calls + 1
        if int(self.calls) % self.calls_per_epoch == 0:
            self.inner.step()
        return weights
