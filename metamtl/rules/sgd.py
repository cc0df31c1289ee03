"""Gradient descent with momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Number, Slots, TorchRule, active, zero_count


class SGD(TorchRule):
    """Momentum: `m = momentum * m + (1 - dampening) * g`, `p - lr * m`; the first `m` is `g`.

    Args:
        momentum, dampening: as in the formula.
        weight_decay: use the gradient `g + weight_decay * p`.
        nesterov: use the direction `g + momentum * m`.

    Raises:
        ValueError: `nesterov` is used without momentum or with dampening.

    >>> SGD(momentum=0.9, nesterov=True)
    SGD(momentum=0.9, nesterov=True)
    """

    adaptive = False
    momentum: Number
    dampening: Number

    def __init__(
        self,
        *,
        momentum: Number = 0.0,
        dampening: Number = 0.0,
        weight_decay: Number = 0.0,
        nesterov: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_option("momentum", momentum)
        self.set_option("dampening", dampening, least=-float("inf"))
        self.set_option("weight_decay", weight_decay)
        self.nesterov = nesterov
        if nesterov and (not active(self.momentum) or active(self.dampening)):
            raise ValueError("SGD: nesterov=True needs a momentum above 0 and dampening=0.")

    def init_slots(self, param: Tensor) -> Slots:
        if not active(self.momentum):
            return {}
        slots = {"momentum": torch.zeros_like(param)}
        if active(self.dampening):
            slots["count"] = zero_count(param)
        return slots

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        if not slots:
            return gradient, {}
        increment = gradient
        if "count" in slots:
            count = slots["count"].detach()
            # The first gradient is not dampened.
            increment = torch.where(count == 0, gradient, (1 - self.dampening) * gradient)
            slots = {**slots, "count": count + 1}
        momentum = self.momentum * slots["momentum"] + increment
        direction = gradient + self.momentum * momentum if self.nesterov else momentum
        return direction, {**slots, "momentum": momentum}
