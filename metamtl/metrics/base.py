"""Metrics of single examples: accuracies and errors with their direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functional.labels import (
    aligned,
    check_range,
    check_scores,
    check_tensors,
    is_labeled,
    labeled_examples,
    num_examples,
    same_entries,
)


@dataclass(frozen=True)
class Metric:
    """A measure of quality and its direction.

    `function(output, y)` computes one value per example, `[Q]`, or one per label, in the shape of `y`
    (tags `[Q, L]`). The value of a task is their mean. A value per example must depend only on that
    example. A measure of a whole set (F1, AUC) is a scalar: a tensor, a number or a NumPy scalar.

    Missing labels are excluded. A call passes only examples with a label to `function`; values of missing
    labels are dropped. If `y` is not a single tensor, `function` receives all examples and must exclude
    missing labels itself.

    Args:
        function: `function(output, y)`, called with ordinary tensors, outside of any torch.func transform.
        higher_is_better: the direction.

    Raises:
        TypeError: `function` is not callable, or `higher_is_better` is not a bool; on a call, the result is
            neither a tensor nor a number.
        ValueError: on a call, no example is labeled, or the result has another shape.

    >>> accuracy(torch.eye(3), torch.tensor([0, -100, 1]))
    tensor([1., 0.])
    """

    function: Callable[[Any, Any], Any]
    higher_is_better: bool

    def __post_init__(self) -> None:
        if isinstance(self.function, type) or not callable(self.function):
            raise TypeError(
                f"the function of a Metric is {self.function!r}; pass a function of (output, y), or an"
                " instance if it is a class."
            )
        if not isinstance(self.higher_is_better, bool):
            raise TypeError(
                f"higher_is_better={self.higher_is_better!r} is not a bool; pass True if a higher value is"
                " better, else False."
            )

    def __call__(self, output: Any, y: Any) -> Tensor:
        """Compute the values of all labeled examples, or of all labels, `[n]`, or a scalar."""
        output, y = labeled_examples(output, y)
        return _flat_values(self.function(output, y), output, y)


def _accuracy(output: Tensor, y: Tensor) -> Tensor:
    check_scores(output, y)
    check_range(y, output.shape[-1] - 1, f"the output has scores for {output.shape[-1]} classes")
    return (output.argmax(-1) == y).to(output.dtype)


def _squared_error(output: Tensor, y: Tensor) -> Tensor:
    output, y = same_entries(output, y)
    mask = is_labeled(y)
    errors = (output - y).square()
    return errors.where(mask, torch.zeros_like(errors)).sum(1) / mask.sum(1)


def _binary_accuracy(output: Tensor, y: Tensor) -> Tensor:
    check_tensors(output, y)
    check_range(y, 1, "there are two classes")
    return ((aligned(output, y) > 0) == (y > 0.5)).to(output.dtype)


def _flat_values(values: Any, output: Any, y: Any) -> Tensor:
    """Convert the result of a metric's function to `[n]` or a scalar."""
    if not isinstance(values, Tensor):
        try:
            values = torch.as_tensor(values, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"the metric returned a {type(values).__name__}; return a tensor of one value for each"
                " example, or a number."
            ) from error
    values = values.detach()
    if values.is_complex():
        raise TypeError(f"the metric returned {values.dtype}, which has no order; return real numbers.")
    if not values.is_floating_point():
        values = values.to(torch.get_default_dtype())
    n = num_examples(output, y)
    if values.dim() == 0 or n is None:
        return values.flatten() if values.dim() else values
    labels = is_labeled(y) if isinstance(y, Tensor) else None
    if labels is not None and values.shape == labels.shape:
        return values[labels]
    if values.shape in ((n,), (n, 1)) or (labels is not None and values.shape == (int(labels.sum()),)):
        return values.flatten()
    shape = "" if labels is None else f", labels of shape {list(labels.shape)}"
    raise ValueError(
        f"the metric returned values of shape {list(values.shape)} for {n} examples{shape}; return one"
        f" value for each example, [{n}], one for each label, or a scalar for the whole set."
    )


accuracy = Metric(_accuracy, higher_is_better=True)
"""1 if the largest of the scores `[Q, N]` is that of the label `[Q]`, else 0.

A label outside `0 .. N-1` raises ValueError unless it is missing."""

mse = Metric(_squared_error, higher_is_better=False)
"""Squared error of each example, averaged over its targets that are not missing."""

binary_accuracy = Metric(_binary_accuracy, higher_is_better=True)
"""1 if the score `[Q]` or `[Q, 1]` is above 0 and the label above 1/2, or neither is, else 0.

A label outside `[0, 1]` raises ValueError unless it is missing."""

token_accuracy = Metric(_accuracy, higher_is_better=True)
"""For each real token, 1 if its largest score `[B, L, N]` is that of its tag `[B, L]`, else 0."""


def absolute_error(unit: float = 1.0) -> Metric:
    """`unit * |output - y|` of each example, in the original unit of targets that were divided by `unit`.

    >>> absolute_error(2.0)(torch.tensor([[1.5]]), torch.tensor([1.0]))
    tensor([1.])
    """

    def error(output: Tensor, y: Tensor) -> Tensor:
        check_tensors(output, y)
        return unit * (aligned(output, y) - y).abs()

    return Metric(error, higher_is_better=False)
