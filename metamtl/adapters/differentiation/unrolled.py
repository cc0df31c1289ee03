"""Differentiation through all inner steps."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Differentiation


@dataclass(frozen=True)
class Unrolled(Differentiation):
    """Differentiate through every inner step, second derivatives included: MAML.

    Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400. Memory grows with K under the eager
    engines; `Checkpointed` computes the same gradient in constant memory.
    """

    def second_order(self, k: int, steps: int) -> bool:
        return True
