"""Start parameters from zero for every task, such as the context of CAVIA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params, select_parameters
from ..losses import Loss
from .base import Adapter, initial_params


class Zeros(Adapter):
    """Set some parameters to zero; they are not learned by the outer loop.

    `Chain(Zeros("context"), Gradient(K, lr, "context"))` is CAVIA: only a context vector is adapted, from
    0, and the outer loop learns everything else. Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642.

    Args:
        parameters: one or several prefixes of parameter names.

    >>> Zeros("bias")(nn.Linear(2, 1), None, nn.functional.mse_loss)["bias"]
    tensor([0.])
    """

    def __init__(self, parameters: str | Iterable[str]) -> None:
        super().__init__()
        self.selected = parameters if isinstance(parameters, str) else tuple(parameters)

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        select_parameters(model, self.selected, "parameters")

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
        names = select_parameters(model, self.selected, "parameters")
        return {**params, **{name: torch.zeros_like(params[name]) for name in names}}
