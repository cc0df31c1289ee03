"""The trivial answer to a regression task: the mean of its support targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..episode import Batch
from ..functional import Params
from ..losses import Loss
from .base import Adapter, initial_params, require_support


class MeanPredictor(Adapter):
    """A head that answers every input with the mean of the support targets: `W = 0`, `b = mean(y)`.

    The row that every comparison on regression tasks carries: a method that does not beat it has learned
    nothing.
    """

    def __init__(self, head: str = "head") -> None:
        super().__init__()
        self.head = head

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        params = initial_params(model, params)
        params[f"{self.head}.weight"] = torch.zeros_like(params[f"{self.head}.weight"])
        params[f"{self.head}.bias"] = require_support(support, self).y.mean(0)
        return params
