"""First-order differentiation: inner gradients are constants."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Differentiation


@dataclass(frozen=True)
class FirstOrder(Differentiation):
    """Treat inner gradients as constants: first-order MAML.

    Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 5.2.
    """

    def second_order(self, k: int, steps: int) -> bool:
        return False
