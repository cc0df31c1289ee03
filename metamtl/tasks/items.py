"""Read the items of a data set, with errors that name the item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import as_tensor

Get = Callable[[Any], Any]


def read_items(dataset: Any, image: Get | None, label: Get | None) -> tuple[Tensor, list[Any]]:
    """Read images `[M, ...]` and labels from all items of a data set.

    Args:
        dataset: a data set with a length and integer indices.
        image: maps an item to its image; if None, `item[0]`, or the item itself if it is not a tuple.
        label: maps an item to its class; if None, `item[1]`.

    Raises:
        TypeError: an `IterableDataset` or a `DataLoader`; an item of unknown structure.
        ValueError: an empty data set; an item that cannot be read, or whose shape differs from the first.
    """
    kind = type(dataset).__name__
    if hasattr(dataset, "dataset") and hasattr(dataset, "batch_size"):
        raise TypeError(
            f"got a {kind}, whose items are batches; pass its data set: {kind.lower()}.dataset."
        )
    if (
        not hasattr(dataset, "__getitem__")
        or not hasattr(dataset, "__len__")
        or isinstance(dataset, Mapping)
    ):
        raise TypeError(
            f"got a {kind}, which has no length or no integer indices; read an iterable first:"
            " from_dataset(list(dataset))."
        )
    if len(dataset) == 0:
        raise ValueError(f"the {kind} is empty; pass one with at least one item.")
    images: list[Tensor] = []
    labels: list[Any] = []
    for index in range(len(dataset)):
        try:
            item = dataset[index]
            part = _part(item, image, 0, "image")
            tensor = _image(part)
            labels.append(_part(item, label, 1, "label"))
        except Exception as error:
            error_type = TypeError if isinstance(error, TypeError) else ValueError
            raise error_type(f"item {index} of the {kind} cannot be read: {_words(error)}") from error
        if images and (tensor.shape, tensor.dtype) != (images[0].shape, images[0].dtype):
            raise ValueError(
                f"item {index} of the {kind} has shape {list(tensor.shape)} ({tensor.dtype}), but"
                f" item 0 has {list(images[0].shape)} ({images[0].dtype}); convert all images to one size"
                " and mode, such as image.convert('RGB').resize((84, 84)), in the transform."
            )
        images.append(tensor)
    return torch.stack(images), labels


def _words(error: Exception) -> str:
    return str(error) if type(error) in (TypeError, ValueError) else f"{type(error).__name__}: {error}"


def _part(item: Any, get: Get | None, position: int, name: str) -> Any:
    if get is not None:
        return get(item)
    if isinstance(item, (tuple, list)) and len(item) > position:
        return item[position]
    if name == "image" and not isinstance(item, (tuple, list, Mapping)):
        return item
    keys = f" with the keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else ""
    raise TypeError(
        f"it is a {type(item).__name__}{keys}, not a pair (image, class); pass {name}=lambda item: ...,"
        f" which returns the {name} of an item."
    )


def _image(value: Any) -> Tensor:
    """Convert an image to a tensor; Pillow images become `[C, H, W]`, or `[H, W]` with one channel."""
    if isinstance(value, Mapping):
        raise TypeError(
            f"the image is a {type(value).__name__}; pass image=lambda item: ..., which selects the image."
        )
    mode = getattr(value, "mode", None)
    if not isinstance(mode, str) or not hasattr(value, "getbands"):
        return as_tensor(value, "the image")
    if mode in ("P", "PA"):
        raise ValueError(
            f"the image has mode {mode}, whose values are palette indices; call image.convert('RGB')."
        )
    array = np.asarray(value)
    return as_tensor(np.moveaxis(array, -1, 0).copy() if array.ndim == 3 else array, "the image")
