"""Read the items of a data set, with errors that name the item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..functional.random_state import seeded
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
    check_dataset(dataset)
    kind = type(dataset).__name__
    images: list[Tensor] = []
    labels: list[Any] = []
    for index in range(len(dataset)):
        with _named(dataset, index):
            item = dataset[index]
            tensor = _image(_part(item, image, 0, "image"))
            labels.append(_part(item, label, 1, "label"))
        if images and (tensor.shape, tensor.dtype) != (images[0].shape, images[0].dtype):
            raise ValueError(
                f"item {index} of the {kind} has shape {list(tensor.shape)} ({tensor.dtype}), but"
                f" item 0 has {list(images[0].shape)} ({images[0].dtype}); convert all images to one size"
                " and mode, such as image.convert('RGB').resize((84, 84)), in the transform."
            )
        images.append(tensor)
    return torch.stack(images), labels


def check_dataset(dataset: Any) -> None:
    """Reject a data set without items, a length or integer indices."""
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


def names_of(dataset: Any, labels: Iterable[Any]) -> Sequence[str] | None:
    """The list `classes` of a data set, as in torchvision, if it has a name for every label."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None
    is_named = all(hasattr(label, "__index__") and 0 <= int(label) < len(names) for label in labels)
    return names if is_named else None


class ItemReader:
    """Reads the image of an item of a data set; the function of `LazyFewShot`.

    Random transforms of the data set draw from the global generators of torch, Python and NumPy, which
    start at `seed` for each item.
    """

    def __init__(self, dataset: Any, image: Get | None) -> None:
        self.dataset, self.image = dataset, image

    def __call__(self, position: int, seed: int) -> Tensor:
        with _named(self.dataset, position), seeded(seed):
            return _image(_part(self.dataset[position], self.image, 0, "image"))


@contextmanager
def _named(dataset: Any, index: int) -> Iterator[None]:
    """Context manager in which an error names the item that is read."""
    try:
        yield
    except Exception as error:
        error_type = TypeError if isinstance(error, TypeError) else ValueError
        words = str(error)
        if type(error) not in (TypeError, ValueError):
            words = f"{type(error).__name__}: {error}"
        kind = type(dataset).__name__
        raise error_type(f"item {index} of the {kind} cannot be read: {words}") from error


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
