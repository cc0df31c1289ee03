"""Rules that divide by the root of averaged or summed squared gradients: RMSprop, Adagrad, Adadelta."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Number, Slots, TorchRule, active, average, ratio, root, zero_count


class RMSprop(TorchRule):
    """`g / (sqrt(v) + eps)`, where `v` is the average of `g^2`, as in `torch.optim.RMSprop`.

    Args:
        alpha: the decay rate of `v`.
        eps: as in the formula.
        weight_decay: use the gradient `g + weight_decay * p`.
        momentum: use the direction `b = momentum * b + g / (sqrt(v) + eps)`.
        centered: subtract the square of the average of `g` from `v`.

    >>> RMSprop(alpha=0.9)
    RMSprop(alpha=0.9)
    """

    alpha: Number
    eps: Number
    momentum: Number

    def __init__(
        self,
        *,
        alpha: Number = 0.99,
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        momentum: Number = 0.0,
        centered: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_option("alpha", alpha)
        self.set_option("eps", eps)
        self.set_option("weight_decay", weight_decay)
        self.set_option("momentum", momentum)
        self.centered = centered

    def init_slots(self, param: Tensor) -> Slots:
        slots = {"square": True, "mean": self.centered, "momentum": active(self.momentum)}
        return {name: torch.zeros_like(param) for name, is_used in slots.items() if is_used}

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        new_slots = {"square": average(slots["square"], gradient.square(), self.alpha)}
        variance = new_slots["square"]
        if self.centered:
            new_slots["mean"] = average(slots["mean"], gradient, self.alpha)
            variance = variance - new_slots["mean"].square()
        direction = ratio(gradient, root(variance) + self.eps)
        if "momentum" in slots:
            direction = new_slots["momentum"] = self.momentum * slots["momentum"] + direction
        return direction, new_slots


class Adagrad(TorchRule):
    """`g / (sqrt(s) + eps) / (1 + (k - 1) lr_decay)` at update k, where `s` is the sum of `g^2`.

    Duchi, Hazan, Singer 2011, as in `torch.optim.Adagrad`.

    Args:
        lr_decay, eps: as in the formula.
        weight_decay: use the gradient `g + weight_decay * p`.
        initial_accumulator_value: the initial value of `s`.

    >>> Adagrad(lr_decay=0.1)
    Adagrad(lr_decay=0.1)
    """

    lr_decay: Number
    initial_accumulator_value: Number
    eps: Number

    def __init__(
        self,
        *,
        lr_decay: Number = 0.0,
        weight_decay: Number = 0.0,
        initial_accumulator_value: Number = 0.0,
        eps: Number = 1e-10,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_option("lr_decay", lr_decay)
        self.set_option("weight_decay", weight_decay)
        self.set_option("initial_accumulator_value", initial_accumulator_value)
        self.set_option("eps", eps)

    def init_slots(self, param: Tensor) -> Slots:
        # `direction` adds the initial value, which may be learned: a state must not depend on parameters.
        slots = {"sum": torch.zeros_like(param)}
        if active(self.lr_decay):
            slots["count"] = zero_count(param)
        return slots

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        new_slots = {"sum": slots["sum"] + gradient.square()}
        total = new_slots["sum"] + self.initial_accumulator_value
        direction = ratio(gradient, root(total) + self.eps)
        if "count" in slots:
            count = slots["count"].detach()
            direction = direction / (1 + count * self.lr_decay).to(gradient.dtype)
            new_slots["count"] = count + 1
        return direction, new_slots


class Adadelta(TorchRule):
    """`sqrt((a + eps) / (v + eps)) g`, Zeiler 2012, https://arxiv.org/abs/1212.5701.

    As in `torch.optim.Adadelta`, `v` and `a` are the averages of the squares of `g` and of the previous
    directions.

    Args:
        rho: the decay rate of the averages.
        eps: as in the formula.
        weight_decay: use the gradient `g + weight_decay * p`.

    >>> Adadelta(rho=0.8)
    Adadelta(rho=0.8)
    """

    rho: Number
    eps: Number

    def __init__(
        self, *, rho: Number = 0.9, eps: Number = 1e-6, weight_decay: Number = 0.0, **unknown: Any
    ) -> None:
        super().__init__(unknown)
        self.set_option("rho", rho, most=1.0)
        self.set_option("eps", eps)
        self.set_option("weight_decay", weight_decay)

    def init_slots(self, param: Tensor) -> Slots:
        return {"square": torch.zeros_like(param), "step_square": torch.zeros_like(param)}

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        square = average(slots["square"], gradient.square(), self.rho)
        direction = ratio(root(slots["step_square"] + self.eps), root(square + self.eps)) * gradient
        step_square = average(slots["step_square"], direction.square(), self.rho)
        return direction, {"square": square, "step_square": step_square}
