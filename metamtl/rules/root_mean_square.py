"""Rules that divide by the root of averaged or summed squares: RMSprop, Adagrad, Adadelta."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Number, Slots, TorchRule, active, average, ratio, root, zero_count


class RMSprop(TorchRule):
    """`g / (sqrt(v) + eps)` with `v` the average of `g^2`, as `torch.optim.RMSprop`.

    Args:
        alpha: the weight of the old `v`.
        eps: as in the formula.
        weight_decay: the gradient is `g + weight_decay * p`.
        momentum: the direction is `b = momentum * b + g / (sqrt(v) + eps)`.
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
        present = {"square": True, "mean": self.centered, "momentum": active(self.momentum)}
        return {name: torch.zeros_like(param) for name, there in present.items() if there}

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        new = {"square": average(slots["square"], gradient.square(), self.alpha)}
        variance = new["square"]
        if self.centered:
            new["mean"] = average(slots["mean"], gradient, self.alpha)
            variance = variance - new["mean"].square()
        direction = ratio(gradient, root(variance) + self.eps)
        if "momentum" in slots:
            direction = new["momentum"] = self.momentum * slots["momentum"] + direction
        return direction, new


class Adagrad(TorchRule):
    """`g / (sqrt(s) + eps) / (1 + (k - 1) lr_decay)` at update k, with `s` the sum of `g^2`.

    Duchi, Hazan, Singer 2011, as `torch.optim.Adagrad`.

    Args:
        lr_decay, eps: as in the formula.
        weight_decay: the gradient is `g + weight_decay * p`.
        initial_accumulator_value: the first `s`.

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
        # A learned value enters in `direction`, because a state is independent of the rule's parameters.
        slots = {"sum": torch.zeros_like(param)}
        if active(self.lr_decay):
            slots["count"] = zero_count(param)
        return slots

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        new = {"sum": slots["sum"] + gradient.square()}
        total = new["sum"] + self.initial_accumulator_value
        direction = ratio(gradient, root(total) + self.eps)
        if "count" in slots:
            count = slots["count"].detach()
            direction = direction / (1 + count * self.lr_decay).to(gradient.dtype)
            new["count"] = count + 1
        return direction, new


class Adadelta(TorchRule):
    """`sqrt((a + eps) / (v + eps)) g`, as `torch.optim.Adadelta`, Zeiler 2012, https://arxiv.org/abs/1212.5701.

    `v` and `a` are the averages of the squares of `g` and of the directions before this one.

    Args:
        rho: the weight of the old averages.
        eps: as in the formula.
        weight_decay: the gradient is `g + weight_decay * p`.

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
