"""Joint training: all tasks use the shared parameters unchanged."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..episode import Batch
from ..functional import Params
from ..losses import Loss
from .base import Adapter, initial_params


class Shared(Adapter):
    """Return the shared parameters unchanged: `phi_t = theta`, zero inner steps.

    >>> sorted(Shared()(nn.Linear(1, 1), None, nn.functional.mse_loss))
    ['bias', 'weight']
    """

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        return initial_params(model, params)
