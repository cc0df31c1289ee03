"""Rules whose step size is a state: ASGD and Rprop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Number, Slots, TorchRule, zero_count


class ASGD(TorchRule):
    """`p (1 - lambd eta) - eta g` with a step size `eta` that falls, as in `torch.optim.ASGD`.

    Polyak, Juditsky 1992, https://doi.org/10.1137/0330046. `eta` is the learning rate in the first update,
    and `lr / (1 + lambd lr k)^alpha` after update k, counted from 1. The average of the parameters, which
    torch stores beside them (`t0`), does not affect the updates and is not computed.

    Args:
        lambd, alpha: as in the formula.
        weight_decay: use the gradient `g + weight_decay * p`.

    >>> ASGD(lambd=0.1)
    ASGD(lambd=0.1)
    """

    adaptive = False
    lambd: Number
    alpha: Number

    def __init__(
        self,
        *,
        lambd: Number = 1e-4,
        alpha: Number = 0.75,
        weight_decay: Number = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_option("lambd", lambd)
        self.set_option("alpha", alpha)
        self.set_option("weight_decay", weight_decay)

    def init_slots(self, param: Tensor) -> Slots:
        return {"count": zero_count(param), "eta": torch.zeros_like(param)}

    def step(
        self, value: Tensor, gradient: Tensor, slots: Slots, lr: float | Tensor
    ) -> tuple[Tensor, Slots]:
        count = slots["count"].detach()
        eta = torch.where(count == 0, lr, slots["eta"])
        new_eta = lr / (1 + self.lambd * lr * (count + 1)) ** self.alpha
        new_value = value - eta * (gradient + self.lambd * value)
        return new_value, {"count": count + 1, "eta": torch.zeros_like(slots["eta"]) + new_eta}


class Rprop(TorchRule):
    """Resilient backpropagation, Riedmiller, Braun 1993, as in `torch.optim.Rprop`.

    Every entry has a step size, at first the learning rate. It is multiplied by `etas[1]` if the gradient
    has kept its sign, and by `etas[0]` if the sign has changed; then this gradient counts as 0. The step is
    `size sign(g)`. A sign has derivative 0, so the outer gradient does not reach the inner gradient.

    Args:
        etas: the two factors.
        step_sizes: the smallest and the largest step size.

    Raises:
        ValueError: the factors or sizes are out of order.

    >>> Rprop(etas=(0.5, 1.1))
    Rprop(etas=(0.5, 1.1))
    """

    adaptive = False

    def __init__(
        self,
        *,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        if not 0 < etas[0] < 1 < etas[1]:
            raise ValueError(f"Rprop: etas={etas} must be below and above 1.")
        if not 0 <= step_sizes[0] <= step_sizes[1]:
            raise ValueError(f"Rprop: step_sizes={step_sizes} must be the smallest and the largest size.")
        self.etas, self.step_sizes = tuple(etas), tuple(step_sizes)
        self.set_option("weight_decay", 0.0)

    def init_slots(self, param: Tensor) -> Slots:
        zeros = torch.zeros_like(param)
        return {"count": zero_count(param), "previous": zeros, "size": torch.zeros_like(param)}

    def step(
        self, value: Tensor, gradient: Tensor, slots: Slots, lr: float | Tensor
    ) -> tuple[Tensor, Slots]:
        count = slots["count"].detach()
        size = torch.where(count == 0, lr, slots["size"])
        agreement = (gradient * slots["previous"]).sign().detach()
        factor = torch.where(agreement < 0, self.etas[0], torch.where(agreement > 0, self.etas[1], 1.0))
        size = (size * factor.to(value.dtype)).clamp(*self.step_sizes)
        gradient = torch.where(agreement < 0, 0.0, gradient)
        new_slots = {"count": count + 1, "previous": gradient, "size": size}
        return value - size * gradient.sign().detach(), new_slots
