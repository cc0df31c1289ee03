"""What is being learned: a loss, and metrics with their direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Loss = Callable[[Any, Any], Tensor]  # (model output, targets) -> scalar


@dataclass(frozen=True)
class Metric:
    """A measure of quality, and which way is better.

    `function(output, y)` returns one value for each example, `[Q]`; a task's value is their mean. A
    measure of a whole set (F1, AUC) returns a scalar instead.
    """

    function: Callable[[Any, Any], Tensor]
    higher_is_better: bool

    def __call__(self, output: Any, y: Any) -> Tensor:
        return self.function(output, y)


@dataclass(frozen=True)
class Task:
    """A name, the loss that trains it and the metrics that judge it.

    >>> from torch.nn import functional as F
    >>> Task("digits", F.cross_entropy, {"accuracy": accuracy}).metrics["accuracy"].higher_is_better
    True
    """

    name: str
    loss: Loss
    metrics: Mapping[str, Metric] = field(default_factory=dict)


def _accuracy(output: Tensor, y: Tensor) -> Tensor:
    return (output.argmax(-1) == y).to(output.dtype)


def _squared_error(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().flatten(1).mean(1)


accuracy = Metric(_accuracy, higher_is_better=True)
"""1 where the largest of the scores `[Q, N]` is that of the label `[Q]`, else 0."""

mse = Metric(_squared_error, higher_is_better=False)
"""Squared error of each example, averaged over its outputs."""
