"""What is being learned: a loss, and metrics with their direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Any, Any], Tensor]  # (model output, targets) -> scalar

MISSING = -100
"""The label of what was not labelled, where labels are integers (torch's `ignore_index`); NaN in floats."""


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

    def of_labelled(self) -> Metric:
        """The same over the labelled examples alone, for tasks in which some labels are missing.

        >>> accuracy.of_labelled()(torch.eye(3), torch.tensor([0, MISSING, 1]))
        tensor([1., 0.])
        """

        def measured(output: Tensor, y: Tensor) -> Tensor:
            there = labelled(y)
            if not bool(there.any()):
                raise ValueError(
                    f"none of the {len(y)} examples is labelled, so there is nothing to measure."
                )
            return self.function(output[there], y[there])

        return Metric(measured, self.higher_is_better)


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


def present(y: Tensor) -> Tensor:
    """Which labels are there, in the shape of `y`.

    A missing label is NaN where labels are floats, `MISSING` where they are integers.

    >>> present(torch.tensor([[2, MISSING], [MISSING, MISSING]]))
    tensor([[ True, False],
            [False, False]])
    """
    return ~y.isnan() if y.is_floating_point() else y != MISSING


def labelled(y: Tensor) -> Tensor:
    """Which examples have a label, `[Q]`; one with several (a tag for each token) where one is there.

    >>> labelled(torch.tensor([1.0, float("nan")]))
    tensor([ True, False])
    >>> labelled(torch.tensor([[2, MISSING], [MISSING, MISSING]]))
    tensor([ True, False])
    """
    there = present(y)
    return there.flatten(1).any(1) if there.dim() > 1 else there


def masked(function: Callable[..., Tensor]) -> Loss:
    """The mean of `function` over the labels that are there: `sum_i m_i f(o_i, y_i) / sum_i m_i`.

    `function(output, y, reduction="none")` is one of torch's losses for floating-point targets; a missing
    target is NaN. The output `[Q, 1]` of a head serves targets `[Q]`. Where no target is there the result
    is 0 / 0 = NaN, which `meta_backward` refuses with the task's name: no label, no gradient, and no zero
    that looks like a solved task.

    >>> y = torch.tensor([1.0, float("nan"), 3.0])
    >>> masked(F.mse_loss)(torch.zeros(3), y)
    tensor(5.)
    """

    def loss(output: Tensor, y: Tensor) -> Tensor:
        output = aligned(output, y)
        there = ~y.isnan()
        # The missing targets are replaced before the function sees them, so that no NaN reaches a gradient.
        values = function(output, y.where(there, torch.zeros_like(y)), reduction="none")
        return values.where(there, torch.zeros_like(values)).sum() / there.sum()

    return loss


def aligned(output: Tensor, y: Tensor) -> Tensor:
    """`output` in the shape of `y`, where a head's axis of length 1 is all that sets them apart.

    Raises:
        ValueError: they differ in more; torch would silently broadcast one against the other.
    """
    if output.shape == (*y.shape, 1):
        return output.squeeze(-1)
    if output.shape != y.shape:
        raise ValueError(
            f"the output has shape {list(output.shape)}, the targets {list(y.shape)}; a head must give one"
            " number for each target."
        )
    return output


def token_cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of tags, the mean over real tokens.

    Scores `[B, L, N]`, tags `[B, L]` with `MISSING` where there is no token. Where no token is real the
    result is NaN, as in `masked`.
    """
    return F.cross_entropy(output.flatten(0, 1), y.flatten(), ignore_index=MISSING)


def image_mse(output: Tensor, y: Tensor) -> Tensor:
    """Squared error of pictures, mean over examples and pixels; `[B, 784]` serves `[B, 1, 28, 28]`."""
    return F.mse_loss(output.flatten(1), y.flatten(1))


def _accuracy(output: Tensor, y: Tensor) -> Tensor:
    return (output.argmax(-1) == y).to(output.dtype)


def _squared_error(output: Tensor, y: Tensor) -> Tensor:
    return (output.flatten(1) - y.flatten(1)).square().mean(1)


def _binary_accuracy(output: Tensor, y: Tensor) -> Tensor:
    return ((aligned(output, y) > 0) == (y > 0.5)).to(output.dtype)


def _token_accuracy(output: Tensor, y: Tensor) -> Tensor:
    real = y != MISSING
    return (output.argmax(-1) == y)[real].to(output.dtype)


accuracy = Metric(_accuracy, higher_is_better=True)
"""1 where the largest of the scores `[Q, N]` is that of the label `[Q]`, else 0."""

mse = Metric(_squared_error, higher_is_better=False)
"""Squared error of each example, averaged over its outputs."""

binary_accuracy = Metric(_binary_accuracy, higher_is_better=True)
"""1 where the sign of the score `[Q]` or `[Q, 1]` is that of the label, 1. or 0., else 0."""

token_accuracy = Metric(_token_accuracy, higher_is_better=True)
"""1 for each real token whose largest score `[B, L, N]` is that of its tag `[B, L]`, else 0."""


def absolute_error(unit: float = 1.0) -> Metric:
    """`unit * |output - y|` of each example: in the target's own unit, where it was divided by `unit`.

    >>> absolute_error(2.0)(torch.tensor([[1.5]]), torch.tensor([1.0]))
    tensor([1.])
    """
    return Metric(lambda output, y: unit * (aligned(output, y) - y).abs(), higher_is_better=False)
