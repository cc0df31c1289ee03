"""Conversion of arrays, lists and labels to tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Label = int | str


def as_tensor(values: Any, name: str) -> Tensor:
    """Convert values to a tensor of the same dtype, without a copy if possible.

    Args:
        values: a tensor, an array, or a list of numbers, arrays or tensors of one shape.
        name: name of the argument, for error messages.

    Raises:
        ValueError: rows of different shapes or dtypes.
        TypeError: strings or other objects.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, (list, tuple)) and values and all(isinstance(row, Tensor) for row in values):
        kinds = {f"{list(row.shape)} {row.dtype}" for row in values}
        if len(kinds) > 1:
            raise ValueError(
                f"{name} has rows of different shapes or types: {', '.join(sorted(kinds)[:5])};"
                " pad or convert them."
            )
        return torch.stack(list(values))
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} has rows of different shapes; pad or resize them. {error}") from error
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"{name} holds {array.dtype} values, not numbers; encode them as numbers and pad rows of"
            " different lengths."
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # Copied if read-only (Pillow images, memory maps), because torch warns, or if strides are negative.
    is_plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if is_plain else array.copy())


def image_scale(values: Tensor) -> int | None:
    """Value of white if values are images according to their dtype, else None.

    Images are `[M, H, W]` or `[M, C, H, W]` of `uint8` (255), `uint16` (65535) or `bool` (1). All other
    integers are ids or counts.
    """
    if values.dim() < 3:
        return None
    return {torch.uint8: 255, torch.uint16: 65535, torch.bool: 1}.get(values.dtype)


def widened(values: Tensor) -> Tensor:
    """Convert `uint16`, `uint32` and `uint64` to `int64`, because torch supports few operations on them."""
    return values.to(torch.int64) if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values


def as_floats(x: Tensor, scale: int | None) -> Tensor:
    """Images and booleans as floats, images divided by `scale`; other values as they are."""
    if scale is None and x.dtype != torch.bool:
        return x
    return x.to(torch.get_default_dtype()).div_(scale or 1)


def class_ids(
    labels: Any, names: Sequence[str] | None = None
) -> tuple[Tensor, tuple[str, ...], Callable[[Any], int]]:
    """Class ids `[M]` of labels, the names of the classes, and the function that maps a label to its id.

    Integers, and floats with integer values, are used as ids; `names[id]` is their name. The id of a string
    is its index in `names`, or else in the sorted unique labels.

    Raises:
        ValueError: floats without an integer value, NaN, a string that is not in `names`, labels of mixed
            types.
    """
    if isinstance(labels, Tensor):
        labels = (labels.double() if labels.is_floating_point() else labels).detach().cpu().numpy()
    if not hasattr(labels, "shape"):
        labels = [_scalar(label) for label in labels]
    array = np.asarray(labels)
    values = array.tolist()
    flat = values if array.ndim == 1 else []
    strings = [isinstance(value, (str, bytes)) for value in flat]
    if any(strings):
        texts = [value.decode() if isinstance(value, bytes) else value for value in flat]
        if others := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
            raise ValueError(
                f"label {others[0]} is {texts[others[0]]!r}, but others are strings; use one type."
            )
        if array.dtype.kind == "U" and not hasattr(labels, "shape"):
            _check_all_strings(labels)
        classes = tuple(names) if names is not None else tuple(sorted(set(texts)))
        number = {name: i for i, name in enumerate(classes)}
        if unknown := sorted(set(texts) - set(number)):
            raise ValueError(
                f"labels {unknown[:5]} are not in class_names; it has {', '.join(classes[:10])}."
            )
        return (
            torch.tensor([number[t] for t in texts], dtype=torch.long),
            classes,
            lambda label: number[str(label)],
        )
    if array.size and array.dtype.kind not in "biuf":
        kinds = sorted({type(value).__name__ for value in flat}) or [str(array.dtype)]
        raise ValueError(f"labels are {', '.join(kinds)}; pass integers or strings, one per example.")
    if array.dtype.kind == "f":
        positions = np.flatnonzero(~(np.isfinite(array) & (array == np.round(array))))
        if len(positions):
            raise ValueError(
                f"label {int(positions[0])} is {float(array.flat[positions[0]])}, which is not a class;"
                " classes are integers or strings. Remove examples without a label; for regression targets,"
                " build an Episode."
            )
    return torch.as_tensor(array.astype(np.int64), device="cpu"), tuple(names or ()), _whole


def _scalar(label: Any) -> Any:
    return label.item() if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 0 else label


def _check_all_strings(labels: Iterable[Any]) -> None:
    for i, label in enumerate(labels):  # NumPy converts numbers to strings if some labels are strings
        if not isinstance(label, (str, np.str_)):
            raise ValueError(f"label {i} is {label!r}, but others are strings; use one type.")


def _whole(label: Any) -> int:
    if isinstance(label, (str, bytes)) or label != int(label):
        raise KeyError(label)
    return int(label)
