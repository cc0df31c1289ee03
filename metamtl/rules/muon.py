"""Muon."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ..functional import Params
from .base import Number, OptState, Slots, TorchRule, active, root


class Muon(TorchRule):
    """Momentum with orthogonalized steps for matrices, as in `torch.optim.Muon`.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. `m` is the average of the gradient, and
    the step is `lr sqrt(max(1, rows / columns))` times the nearly orthogonal matrix that `ns_steps`
    Newton-Schulz iterations compute from `m`, or with `nesterov` from the average of `g` and `m`. For other
    parameters than matrices, combine it with another rule by `Groups`.

    Args:
        momentum: the decay rate of `m`.
        weight_decay: add `weight_decay * p` to the direction, with rate `lr`.
        nesterov, ns_coefficients, ns_steps, eps, adjust_lr_fn: as in torch.
        precision: dtype of the iterations. torch uses bfloat16, whose rounding the outer gradient ignores;
            None is the dtype of the parameter.

    Raises:
        ValueError: in an inner loop: a parameter is not a matrix.

    >>> Muon(momentum=0.9)
    Muon(momentum=0.9)
    """

    decoupled = True
    momentum: Number

    def __init__(
        self,
        *,
        weight_decay: Number = 0.1,
        momentum: Number = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        precision: torch.dtype | None = torch.bfloat16,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_option("weight_decay", weight_decay)
        self.set_option("momentum", momentum)
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"Muon: adjust_lr_fn={adjust_lr_fn!r} is unknown.")
        self.nesterov, self.ns_coefficients, self.eps = nesterov, tuple(ns_coefficients), eps
        self.ns_steps, self.adjust_lr_fn, self.precision = ns_steps, adjust_lr_fn, precision

    def init(self, params: Params) -> OptState:
        others = [name for name, param in params.items() if param.dim() != 2]
        if others:
            raise ValueError(
                f"Muon is for matrices, but {others[:5]} are not; combine it with another rule, as in"
                " rules.Groups({'body.0.weight': Muon(), '': AdamW()})."
            )
        return super().init(params)

    def init_slots(self, param: Tensor) -> Slots:
        return {"mean": torch.zeros_like(param)}

    def step(
        self, value: Tensor, gradient: Tensor, slots: Slots, lr: float | Tensor
    ) -> tuple[Tensor, Slots]:
        mean = slots["mean"].lerp(gradient, 1 - self.momentum)
        update = gradient.lerp(mean, self.momentum) if self.nesterov else mean
        rows, columns = value.shape
        factor = math.sqrt(max(1, rows / columns))
        if self.adjust_lr_fn == "match_rms_adamw":
            factor = 0.2 * math.sqrt(max(rows, columns))
        if active(self.weight_decay):
            value = value * (1 - lr * self.weight_decay)
        return value - lr * factor * self._orthogonal(update).to(value.dtype), {"mean": mean}

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        a, b, c = self.ns_coefficients
        wide = matrix.shape[0] <= matrix.shape[1]
        x = matrix.to(self.precision or matrix.dtype)
        x = x if wide else x.T
        norm = root(x.to(torch.promote_types(x.dtype, torch.float32)).square().sum())
        x = x / norm.to(x.dtype).clamp(min=self.eps)
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x if wide else x.T
