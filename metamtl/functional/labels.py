"""Labels and targets: masks of missing labels, and checks of their shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

MISSING = -100
"""The missing label if labels are integers (torch's `ignore_index`); NaN if they are floats."""


def is_labeled(y: Tensor) -> Tensor:
    """Mask of the labels that are not missing, with the shape of `y`.

    A missing label is NaN if labels are floats, and `MISSING` if they are signed integers. Unsigned
    integers and booleans cannot represent `MISSING`, so none of their labels is missing.

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
    """Mask of the examples that have at least one label, `[Q]`.

    >>> has_label(torch.tensor([1.0, float("nan")]))
    tensor([ True, False])
    >>> has_label(torch.tensor([[2, MISSING], [MISSING, MISSING]]))
    tensor([ True, False])
    """
    mask = is_labeled(y)
    return mask.flatten(1).any(1) if mask.dim() > 1 else mask


def num_labels(batch: tuple[Any, Any]) -> Tensor:
    """Number of labels of `(x, y)` that are not missing, or of examples if `y` has no tensor, as a scalar.

    If `y` contains several tensors, the first one contains the labels.
    """
    x, y = batch
    labels = [leaf for leaf in tree_leaves(y) if isinstance(leaf, Tensor)]
    if labels:
        return is_labeled(labels[0]).sum()
    tensors = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    return torch.full((), len(tensors[0]), device=tensors[0].device)


def labeled_examples(output: Any, y: Any) -> tuple[Any, Any]:
    """Output and labels of the examples that have a label; of all examples if `y` is not a single tensor.

    Raises:
        ValueError: no example has a label; the output has a different number of examples.
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
                " label can be omitted only if both have one row for each example."
            )
        return leaf[mask]

    return tree_map(select, output), y[mask]


def num_examples(output: Any, y: Any) -> int | None:
    """Number of examples, from the labels or else from the output; None if neither has an example axis."""
    if isinstance(y, Tensor):
        return len(y) if y.dim() else None
    tensors = [leaf for leaf in tree_leaves((y, output)) if isinstance(leaf, Tensor) and leaf.dim()]
    return len(tensors[0]) if tensors else None


def is_empty(batch: tuple[Any, Any]) -> bool:
    """Whether the batch `(x, y)` has zero examples.

    If `y` has tensors, all of them and at least one of `x` must be empty; if it has none, all tensors of
    `x`. A single empty tensor may belong to an example, such as the edges of a graph without edges.

    >>> is_empty((torch.zeros(0, 3), torch.zeros(0)))
    True
    >>> is_empty(({"nodes": torch.zeros(4, 3), "edges": torch.zeros(0, 2)}, None))
    False
    """
    if isinstance(batch[1], Tensor) and batch[1].numel():
        return False
    inputs, targets = (
        [not len(leaf) for leaf in tree_leaves(part) if isinstance(leaf, Tensor) and leaf.dim()]
        for part in batch
    )
    return all(targets) and any(inputs) if targets else bool(inputs) and all(inputs)


def aligned(output: Tensor, y: Tensor) -> Tensor:
    """`output` in the shape of `y`, if a last axis of length 1 is the only difference.

    Raises:
        ValueError: the shapes differ otherwise; torch would silently broadcast one against the other.
    """
    if output.shape == (*y.shape, 1):
        return output.squeeze(-1)
    if output.shape != y.shape:
        raise ValueError(
            f"the output has shape {list(output.shape)}, the targets {list(y.shape)}; a head must return"
            " one number for each target."
        )
    return output


def same_entries(output: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Output and targets as `[Q, D]`, if both have the same D numbers for each example.

    The shapes must be equal, or differ only in a last axis of length 1, or one of the tensors must be
    flattened (`[Q, 784]` and `[Q, 1, 28, 28]`).

    Raises:
        TypeError: one of them is not a tensor.
        ValueError: they have other shapes, which torch would broadcast.
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
    """Check that scores `[..., N]` and labels `[...]` have matching shapes.

    Raises:
        TypeError: one of them is not a tensor.
        ValueError: they have other shapes, which torch would broadcast.
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
    """Check that all labels that are not missing are in `[0, high]`. Reads values, so vmap is unsupported.

    Raises:
        ValueError: a label is out of range, so no output can match it.
    """
    labels = y[is_labeled(y)]
    if labels.numel() and not bool(((labels >= 0) & (labels <= high)).all()):
        raise ValueError(
            f"labels range from {labels.min().item()} to {labels.max().item()}, but {reason}, labels 0"
            f" to {high}; correct the labels or widen the head. A missing label is {MISSING}, or NaN if"
            " labels are floats."
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
