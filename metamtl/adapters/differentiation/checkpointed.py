"""Differentiation through all inner steps, with gradient checkpointing."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Differentiation


@dataclass(frozen=True)
class Checkpointed(Differentiation):
    """The gradient of `Unrolled`, with gradient checkpointing (https://arxiv.org/abs/1604.06174).

    Only the parameters of every `every`-th step are stored. The backward pass computes the steps between
    them again, with the same random numbers.

    Args:
        every: the number of steps between stored parameters. Memory is lowest near `sqrt(K)`.

    Raises:
        ValueError: `every` is less than 1.
    """

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Checkpointed: every={self.every} must be at least 1.")

    @property
    def checkpoint_every(self) -> int:  # type: ignore[override]
        return self.every

    def second_order(self, k: int, steps: int) -> bool:
        return True
