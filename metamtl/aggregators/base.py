"""What an aggregator is: it says what the tasks' gradients say together."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Aggregator(nn.Module, ABC):
    """From the tasks' losses `[T]` and gradient rows `[T, n]` to one direction `[n]`."""

    @abstractmethod
    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        """The direction, which takes the place of the gradient: the optimizer steps against it."""
