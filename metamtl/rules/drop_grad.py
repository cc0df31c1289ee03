"""Noise on the inner gradients: DropGrad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..functional import Params
from ..functional.counter_random import normal, uniform
from .base import Rule
from .transformed import TransformedGradients


class DropGrad(TransformedGradients):
    """Multiply the entries of every inner gradient by noise of mean 1, as regularization: DropGrad.

    Tseng et al. 2020, https://arxiv.org/abs/2004.05859. With `kind="binary"` the factors are 0 with
    probability `rate` and `1 / (1 - rate)` otherwise; with `"gaussian"` they are normal with variance
    `rate / (1 - rate)`. The gradient then goes to `rule`. The noise is a function of the key, the inner
    step and the entry; `recipes.drop_grad` sets a new key in every outer step (`Recipe.at`). Without a key
    there is no noise, as in evaluation.

    Differs from the paper in: the tasks of a meta-batch have the same noise.

    Args:
        rule: the update rule that receives the gradient.
        rate: the probability or variance.
        kind: `"binary"` or `"gaussian"`.
        key: integers that determine the noise; None for no noise.

    Raises:
        ValueError: `rate` is not in [0, 1), or the kind is unknown.
    """

    def __init__(
        self,
        rule: Rule,
        rate: float = 0.1,
        kind: Literal["binary", "gaussian"] = "binary",
        *,
        key: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= rate < 1 or kind not in ("binary", "gaussian"):
            raise ValueError(
                f"DropGrad: rate={rate} must be in [0, 1), and kind={kind!r} 'binary' or 'gaussian'."
            )
        self.rule, self.rate, self.kind = rule, rate, kind
        self.key = None if key is None else tuple(key)

    def with_key(self, *key: int) -> DropGrad:
        """The same rule, with the same parameters, and other noise."""
        return DropGrad(self.rule, self.rate, self.kind, key=key)

    def transform(self, params: Params, gradients: Params, k: Tensor) -> Params:
        if self.key is not None:
            names = list(params)
            gradients = {n: g * self._factors(g, k, names.index(n)) for n, g in gradients.items()}
        return gradients

    def _factors(self, gradient: Tensor, k: Tensor, index: int) -> Tensor:
        assert self.key is not None
        key: tuple[int | Tensor, ...] = (*self.key, k, index)
        shape, device = gradient.shape, gradient.device
        if self.kind == "gaussian":
            factors = 1 + (self.rate / (1 - self.rate)) ** 0.5 * normal(key, shape, device=device)
        else:
            kept = uniform(key, shape, device=device) >= self.rate
            factors = kept.to(torch.float64) / (1 - self.rate)
        return factors.to(gradient.dtype)
