"""Plain gradient descent."""

from __future__ import annotations

from torch import Tensor

from ..functional import Params
from .base import OptState, Rates, Rule, descended


class Descent(Rule):
    """Gradient descent, `p - lr * g`. It has no options and no state.

    >>> import torch
    >>> params, gradients = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, 2.0])}
    >>> Descent().update(params, gradients, (), {"w": 0.1}, torch.tensor(0))[0]
    {'w': tensor([0.9000, 0.8000])}
    """

    def __repr__(self) -> str:
        return "Descent()"

    def init(self, params: Params) -> OptState:
        return ()

    def update(
        self, params: Params, gradients: Params, opt_state: OptState, lr: Rates, k: Tensor
    ) -> tuple[Params, OptState]:
        return {
            name: descended(param, gradients[name], lr[name]) if name in gradients else param
            for name, param in params.items()
        }, ()
