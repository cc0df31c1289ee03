"""Arrays, lists, labels and items of data sets as tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Label = int | str


def as_tensor(values: Any, name: str) -> Tensor:
    """A tensor of the same numbers and type, sharing their memory if possible.

    Args:
        values: a tensor, an array, or a list of numbers, arrays or tensors of one shape.
        name: of the argument, for error messages.

    Raises:
        ValueError: rows of different shapes or types.
        TypeError: strings or other objects.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, (list, tuple)) and values and all(isinstance(row, Tensor) for row in values):
        kinds = {f"{list(row.shape)} {row.dtype}" for row in values}
        if len(kinds) > 1:
            raise ValueError(
                f"{name} has rows of different shapes or types: {', '.join(sorted(kinds)[:5])}."
            )
        return torch.stack(list(values))
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} has rows of different shapes; pad or resize them. {error}") from error
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"{name} holds {array.dtype} values, not numbers; encode them as numbers first, and pad rows of"
            " different lengths."
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # Pillow images and memory maps are read-only, of which torch warns; reversed arrays are not taken.
    plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if plain else array.copy())


def image_scale(values: Tensor) -> int | None:
    """The value of white if values are images by their type, else None.

    Images are `[M, H, W]` or `[M, C, H, W]` of `uint8` (255), `uint16` (65535) or `bool` (1). All other
    integers are ids or counts.
    """
    if values.dim() < 3:
        return None
    return {torch.uint8: 255, torch.uint16: 65535, torch.bool: 1}.get(values.dtype)


def widened(values: Tensor) -> Tensor:
    """`values` as `int64` if their type is one in which torch hardly computes (`uint16` to `uint64`)."""
    return values.to(torch.int64) if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values


def class_ids(
    labels: Any, names: Sequence[str] | None = None
) -> tuple[Tensor, tuple[str, ...], Callable[[Any], int]]:
    """Integer class ids `[M]` of labels, the names of the classes, and the function from label to id.

    Integers, and floats that are whole numbers, are ids themselves; `names[id]` is their name. Strings get
    the id of their place in `names`, or else among the sorted unique labels.

    Raises:
        ValueError: floats that are no whole numbers, NaN, a string that `names` does not hold, labels of
            mixed types.
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
        if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
            raise ValueError(
                f"label {wrong[0]} is {texts[wrong[0]]!r}, but others are strings; use one type."
            )
        if array.dtype.kind == "U" and not hasattr(labels, "shape"):
            _check_all_strings(labels)
        known = tuple(names) if names is not None else tuple(sorted(set(texts)))
        number = {name: i for i, name in enumerate(known)}
        if unknown := sorted(set(texts) - set(number)):
            raise ValueError(
                f"labels {unknown[:5]} are not in class_names; it has {', '.join(known[:10])}."
            )
        return (
            torch.tensor([number[t] for t in texts], dtype=torch.long),
            known,
            lambda label: number[str(label)],
        )
    if array.size and array.dtype.kind not in "biuf":
        kinds = sorted({type(value).__name__ for value in flat}) or [str(array.dtype)]
        raise ValueError(f"labels are {', '.join(kinds)}; pass integers or strings, one for each example.")
    if array.dtype.kind == "f":
        places = np.flatnonzero(~(np.isfinite(array) & (array == np.round(array))))
        if len(places):
            raise ValueError(
                f"label {int(places[0])} is {float(array.flat[places[0]])}, which is no class; classes are"
                " integers or strings. Leave out examples without a label; for the targets of a regression,"
                " build an Episode."
            )
    return torch.as_tensor(array.astype(np.int64), device="cpu"), tuple(names or ()), _whole


def _scalar(label: Any) -> Any:
    return label.item() if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 0 else label


def _check_all_strings(labels: Iterable[Any]) -> None:
    for i, label in enumerate(labels):  # NumPy turns numbers beside strings into strings
        if not isinstance(label, (str, np.str_)):
            raise ValueError(f"label {i} is {label!r}, but others are strings; use one type.")


def _whole(label: Any) -> int:
    if isinstance(label, (str, bytes)) or label != int(label):
        raise KeyError(label)
    return int(label)
