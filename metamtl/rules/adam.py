"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Number, Slots, TorchRule, average, bias_correction, ratio, root, zero_count


class Adam(TorchRule):
    """Adam, Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, as in `torch.optim.Adam`.

    `m` and `v` are the exponential moving averages of `g` and `g^2` with decay rates `betas`. The direction
    at update k, counted from 1, is `m / (1 - beta1^k) / (sqrt(v / (1 - beta2^k)) + eps)`. The first
    direction is `g / (|g| + eps)`, whose slope at `g = 0` is `1 / eps`; a larger `eps` bounds the outer
    gradient.

    Args:
        betas, eps: as in the formula.
        weight_decay: use the gradient `g + weight_decay * p`.
        amsgrad: divide by the root of the largest `v` so far.
        decoupled_weight_decay: add `weight_decay * p` to the direction instead, as in `AdamW`.

    >>> Adam(betas=(0.0, 0.999))
    Adam(betas=(0.0, 0.999))
    """

    beta1: Number
    beta2: Number
    eps: Number

    def __init__(
        self,
        *,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        amsgrad: bool = False,
        decoupled_weight_decay: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_betas(betas)
        self.set_option("eps", eps)
        self.set_option("weight_decay", weight_decay)
        self.amsgrad, self.decoupled = amsgrad, decoupled_weight_decay

    def init_slots(self, param: Tensor) -> Slots:
        slots = {
            "count": zero_count(param),
            "mean": torch.zeros_like(param),
            "square": torch.zeros_like(param),
        }
        if self.amsgrad:
            slots["largest"] = torch.zeros_like(param)
        return slots

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        new_slots = {
            "count": slots["count"].detach() + 1,
            "mean": average(slots["mean"], gradient, self.beta1),
            "square": average(slots["square"], gradient.square(), self.beta2),
        }
        square = new_slots["square"]
        if self.amsgrad:
            square = new_slots["largest"] = torch.maximum(slots["largest"], square)
        correction1, correction2 = (
            bias_correction(beta, new_slots["count"]) for beta in (self.beta1, self.beta2)
        )
        denominator = root(square) / correction2.sqrt().to(square.dtype) + self.eps
        return ratio(new_slots["mean"], denominator) / correction1.to(square.dtype), new_slots


class AdamW(Adam):
    """Adam with decoupled weight decay: `weight_decay * p` is added to the direction, not to the gradient.

    Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101. The other options are those of `Adam`.

    >>> AdamW(weight_decay=0.1)
    AdamW(weight_decay=0.1)
    """

    def __init__(
        self,
        *,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.01,
        amsgrad: bool = False,
        **unknown: Any,
    ) -> None:
        self.check_unknown(unknown)
        super().__init__(
            betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, decoupled_weight_decay=True
        )
