"""What an aggregator is: it says what the tasks' gradients say together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Aggregator(nn.Module, ABC):
    """From the tasks' losses `[T]` and gradient rows `[T, n]` to one direction `[n]`.

    Attributes:
        scale: what T equal rows `g` become at the first call, with losses of one: `g` ("mean"), `T g`
            ("sum"), or what the docstring says ("own"). `Rescaled` puts any two on one norm.
        memory: names of what is remembered from call to call. They are buffers, None until the first call
            gives them shape, dtype and device; so they are in the state dict, and training goes on from it
            bit for bit.
        by_parameter: whether something is remembered for each of the n columns. Such an aggregator needs
            rows over parameters: gradients of features belong to other examples at every call.
    """

    scale: str = "own"
    memory: ClassVar[tuple[str, ...]] = ()
    by_parameter: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.name = type(self).__name__  # the method's, in messages
        for name in self.memory:
            self.register_buffer(name, None)

    @abstractmethod
    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        """The direction, which takes the place of the gradient: the optimizer steps against it."""

    def recall(self, name: str, start: Tensor) -> Tensor:
        """What is remembered under `name`; `start` at the first call."""
        found = getattr(self, name)
        if found is None:
            return start
        if found.shape != start.shape:
            raise ValueError(
                f"{self.name} remembers {name} of shape {list(found.shape)} from the calls before, but"
                f" these tasks need {list(start.shape)}; keep one aggregator for one set of tasks."
            )
        return found.to(start)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # What is None until the first call cannot be loaded into.
        for name in self.memory:
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)


def weighted(weights: Tensor, rows: Tensor) -> Tensor:
    """`sum_t w_t g_t`."""
    return weights.to(rows) @ rows.detach()


def check_positive(method: str, losses: Tensor) -> None:
    """Refuse losses that are zero or less, for a method that divides by them or takes their logarithm."""
    bad = (~(losses > 0)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{method} needs positive losses, but those of tasks {bad} are {losses[bad].tolist()}; add a"
            " constant to these losses, or use an aggregator that looks at gradients alone."
        )
