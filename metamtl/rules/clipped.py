"""Clipping of the inner gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import Params
from .base import Rule, root
from .transformed import TransformedGradients


class Clipped(TransformedGradients):
    """Clip the inner gradient before `rule` receives it; the outer gradient goes through the clipping.

    With `max_norm`, all gradients are multiplied by `min(1, max_norm / (norm + 1e-6))`, where `norm` is the
    norm of all of them together, as in `torch.nn.utils.clip_grad_norm_`; with `max_value`, every entry is
    clamped to `[-max_value, max_value]`.

    Raises:
        ValueError: not exactly one bound is passed, or it is not positive.

    >>> from metamtl.rules import Descent
    >>> rule, params = Clipped(Descent(), max_norm=1.0), {"w": torch.zeros(2)}
    >>> rule.update(params, {"w": torch.tensor([3.0, 4.0])}, (), {"w": 1.0}, torch.tensor(0))[0]["w"]
    tensor([-0.6000, -0.8000])
    """

    def __init__(
        self, rule: Rule, *, max_norm: float | None = None, max_value: float | None = None
    ) -> None:
        super().__init__()
        bounds = [bound for bound in (max_norm, max_value) if bound is not None]
        if len(bounds) != 1 or not bounds[0] > 0:
            raise ValueError(
                f"Clipped: max_norm={max_norm}, max_value={max_value}: pass one of the two, above 0."
            )
        self.rule, self.max_norm, self.max_value = rule, max_norm, max_value

    def __repr__(self) -> str:
        bound = f"max_norm={self.max_norm}" if self.max_norm else f"max_value={self.max_value}"
        return f"Clipped({self.rule!r}, {bound})"

    def transform(self, params: Params, gradients: Params, k: Tensor) -> Params:
        if self.max_value is not None:
            bound = self.max_value
            gradients = {name: g.clamp(-bound, bound) for name, g in gradients.items()}
        elif gradients:
            assert self.max_norm is not None
            norm = root(torch.stack([g.square().sum() for g in gradients.values()]).sum())
            factor = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = {name: factor.to(g.dtype) * g for name, g in gradients.items()}
        return gradients
