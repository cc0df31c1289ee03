"""Differentiation through the last inner steps."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Differentiation


@dataclass(frozen=True)
class Truncated(Differentiation):
    """Differentiate through the inner gradients of the last steps; earlier gradients are constants.

    Truncated backpropagation, Shaban et al. 2019, https://arxiv.org/abs/1810.10667.

    Args:
        backprop_steps: the number of last steps that are differentiated; 0 is `FirstOrder`.

    Raises:
        ValueError: `backprop_steps` is negative.
    """

    backprop_steps: int = 1

    def __post_init__(self) -> None:
        if self.backprop_steps < 0:
            raise ValueError(f"Truncated: backprop_steps={self.backprop_steps} cannot be negative.")

    def second_order(self, k: int, steps: int) -> bool:
        return k >= steps - self.backprop_steps
