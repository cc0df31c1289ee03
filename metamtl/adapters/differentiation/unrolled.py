"""Differentiation through all inner steps."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Differentiation


@dataclass(frozen=True)
class Unrolled(Differentiation):
    """Differentiate through every inner step, including second derivatives: MAML.

    Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400. With the eager engines, memory grows with
    K; `Checkpointed` computes the same gradient with less memory.
    """

    def second_order(self, k: int, steps: int) -> bool:
        return True
