"""The trivial baseline for regression tasks: predict the mean of the support targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..episode import Batch
from ..functional import Params
from ..losses import Loss
from .base import Adapter, initial_params, require_support


class MeanPredictor(Adapter):
    """A head that predicts the mean of the support targets for every input: `W = 0`, `b = mean(y)`.

    This is the trivial baseline for regression tasks: a method that is not better has learned nothing.
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
