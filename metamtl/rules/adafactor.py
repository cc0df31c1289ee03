"""Adafactor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Number, Slots, TorchRule, active, root, zero_count


class Adafactor(TorchRule):
    """Adafactor, Shazeer, Stern 2018, https://arxiv.org/abs/1804.04235, as in `torch.optim.Adafactor`.

    At update k, with `b = k^beta2_decay`, the averages `r` and `c` of the row and column means of `g^2` are
    updated with weight `b`, and `v = r c / mean(r)`; for vectors, `v` is the average of `g^2`. The step is
    `max(eps2, rms(p)) min(lr, 1 / sqrt(k)) u / max(1, rms(u) / d)` with `u = g / sqrt(v)`.

    Args:
        beta2_decay, d: as in the formula.
        eps: `(eps1, eps2)`; `v` is at least `eps1^2`. If `eps1` is None, the precision of the parameter.
        weight_decay: add `weight_decay * p` to the direction.

    >>> Adafactor(d=2.0)
    Adafactor(d=2.0)
    """

    decoupled = True
    beta2_decay: Number
    d: Number

    def __init__(
        self,
        *,
        beta2_decay: Number = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: Number = 1.0,
        weight_decay: Number = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_option("beta2_decay", beta2_decay, least=-float("inf"), most=0.0)
        self.set_option("d", d, least=1.0)
        self.set_option("weight_decay", weight_decay)
        self.eps = tuple(eps)

    def init_slots(self, param: Tensor) -> Slots:
        slots = {"count": zero_count(param)}
        if param.dim() < 2:
            return {**slots, "square": torch.zeros_like(param)}
        return {
            **slots,
            "row": torch.zeros_like(param[..., :1]),
            "column": torch.zeros_like(param[..., :1, :]),
        }

    def step(
        self, value: Tensor, gradient: Tensor, slots: Slots, lr: float | Tensor
    ) -> tuple[Tensor, Slots]:
        count = slots["count"].detach() + 1
        weight = (count**self.beta2_decay).to(value.dtype)
        eps1 = torch.finfo(value.dtype).eps if self.eps[0] is None else self.eps[0]
        rate = torch.minimum(torch.as_tensor(lr, dtype=value.dtype), (1 / count.sqrt()).to(value.dtype))
        scale = _rms(value).clamp(min=self.eps[1])
        new_slots = {"count": count}
        square = gradient.square()
        if "row" in slots:
            row = new_slots["row"] = slots["row"].lerp(square.mean(-1, keepdim=True), weight)
            column = new_slots["column"] = slots["column"].lerp(square.mean(-2, keepdim=True), weight)
            square = row @ column / row.mean(-2, keepdim=True).clamp(min=eps1)
        else:
            square = new_slots["square"] = slots["square"].lerp(square, weight)
        update = square.clamp(min=eps1 * eps1).rsqrt() * gradient
        update = update / (_rms(update) / self.d).clamp(min=1.0)
        if active(self.weight_decay):
            value = value * (1 - lr * self.weight_decay)
        return value - scale * rate * update, new_slots


def _rms(x: Tensor) -> Tensor:
    return root(x.square().mean())
