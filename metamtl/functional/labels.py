"""Labels and targets: which of them are missing, and whether their shape fits the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

MISSING = -100
"""The missing label if labels are integers (torch's `ignore_index`); NaN if they are floats."""


def is_labeled(y: Tensor) -> Tensor:
    """Mask of the labels that are not missing, in the shape of `y`.

    A missing label is NaN if labels are floats, `MISSING` if they are signed integers. Unsigned integers
    and booleans cannot hold `MISSING`: all of their labels are present.

    >>> is_labeled(torch.tensor([[2, MISSING], [MISSING, MISSING]]))
    tensor([[ True, False],
            [False, False]])
    >>> is_labeled(torch.tensor([156], dtype=torch.uint8))
    tensor([True])
    """
    if y.is_floating_point() or y.is_complex():
        return ~y.isnan()
    if y.dtype == torch.bool or torch.iinfo(y.dtype).min > MISSING:
        return torch.ones_like(y, dtype=torch.bool)
    return y != MISSING


def has_label(y: Tensor) -> Tensor:
    """Mask of the examples that have a label, `[Q]`; with several labels each, those that have any.

    >>> has_label(torch.tensor([1.0, float("nan")]))
    tensor([ True, False])
    >>> has_label(torch.tensor([[2, MISSING], [MISSING, MISSING]]))
    tensor([ True, False])
    """
    there = is_labeled(y)
    return there.flatten(1).any(1) if there.dim() > 1 else there


def labeled_examples(output: Any, y: Any) -> tuple[Any, Any]:
    """Output and labels of the examples that have a label; all of them if `y` is no single tensor.

    Raises:
        ValueError: no example has a label; the output has another number of examples.
    """
    if not isinstance(y, Tensor) or y.dim() == 0:
        return output, y
    mask = has_label(y)
    if bool(mask.all()):
        return output, y
    if not bool(mask.any()):
        raise ValueError(f"none of the {len(y)} examples is labeled, so there is nothing to measure.")

    def select(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.shape[:1] != y.shape[:1]:
            raise ValueError(
                f"the output has shape {list(leaf.shape)}, the labels {list(y.shape)}; examples without a"
                " label can be left out only if both have one row for each example."
            )
        return leaf[mask]

    return tree_map(select, output), y[mask]


def num_examples(output: Any, y: Any) -> int | None:
    """Length of the axis of examples, of the labels or else of the output; None if there is none."""
    if isinstance(y, Tensor):
        return len(y) if y.dim() else None
    tensors = [leaf for leaf in tree_leaves((y, output)) if isinstance(leaf, Tensor) and leaf.dim()]
    return len(tensors[0]) if tensors else None


def aligned(output: Tensor, y: Tensor) -> Tensor:
    """`output` in the shape of `y`, if a last axis of length 1 is the only difference.

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


def same_entries(output: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Output and targets as `[Q, D]`, if they hold the same D numbers for each example.

    Their shapes are equal, or differ in a last axis of length 1, or one of them is flattened (`[Q, 784]`
    and `[Q, 1, 28, 28]`).

    Raises:
        TypeError: one of them is no tensor.
        ValueError: other shapes, which torch would broadcast.
    """
    check_tensors(output, y)
    same = y.shape in (output.shape, (*output.shape, 1)) or output.shape == (*y.shape, 1)
    flat = output.shape[:1] == y.shape[:1] and 2 in (output.dim(), y.dim())
    if not same and not (flat and output.numel() == y.numel()):
        raise ValueError(
            f"the output has shape {list(output.shape)}, the targets {list(y.shape)}, and torch would"
            " broadcast one against the other; pass one target for each number that the head returns."
        )
    rows = len(y) if y.dim() else 1
    return output.reshape(rows, -1), y.reshape(rows, -1)


def check_scores(output: Any, y: Any) -> None:
    """Check that scores `[..., N]` and labels `[...]` fit together.

    Raises:
        TypeError: one of them is no tensor.
        ValueError: other shapes, which torch would broadcast.
    """
    check_tensors(output, y)
    if output.dim() > 0 and output.shape[:-1] == y.shape:
        return
    remedy = "pass one label for each row of scores"
    if output.shape[:-1] == y.shape[:-1] and y.shape[-1:] == (1,):
        remedy = "drop the last axis of the labels: y.squeeze(-1)"
    elif output.shape == y.shape:
        remedy = (
            "use binary_accuracy if there is one score for each label; if the labels are one-hot, pass"
            " y.argmax(-1)"
        )
    elif y.dim() > 1 and output.shape[:1] + output.shape[2:] == y.shape:
        remedy = "the classes must be the last axis of the scores: output.movedim(1, -1)"
    raise ValueError(
        f"the output has shape {list(output.shape)}, the labels {list(y.shape)}; scores [..., N] need"
        f" labels [...]: {remedy}."
    )


def check_range(y: Tensor, high: int, reason: str) -> None:
    """Check that labels lie in `[0, high]`, except missing ones. Reads values: not for use under vmap.

    Raises:
        ValueError: a label outside, which no output can match.
    """
    labels = y[is_labeled(y)]
    if labels.numel() and not bool(((labels >= 0) & (labels <= high)).all()):
        raise ValueError(
            f"labels range from {labels.min().item()} to {labels.max().item()}, but {reason}, labels 0"
            f" to {high}; correct the labels or widen the head. A missing label is {MISSING}, or NaN in"
            " floats."
        )


def check_tensors(output: Any, y: Any) -> None:
    """Check that output and labels are tensors.

    Raises:
        TypeError: one of them is not.
    """
    for what, value in (("the output", output), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{what} is a {type(value).__name__}, but this function compares two tensors; select them"
                " first, as lambda output, y: f(output['logits'], y) does."
            )
