"""CIFAR-100: the official binary archive, or one sheet of images per class."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .files import source, split_file
from .official_archive import official_archive

PER_CLASS = 600
SHEET = (24, 25)  # rows and columns of a sheet
SUPERCLASSES: dict[str, tuple[str, ...]] = {  # of the official archive, sorted
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
_RECORD = 2 + 3 * 32 * 32  # coarse label, fine label, red, green and blue plane
_PARTS = ("train.bin", "test.bin", "fine_label_names.txt")
_AGAIN = "delete the sheets and use the official archive (download=True downloads it)."


def load(folder: Path, *, download: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """Load the images `[60000, 3, 32, 32]`, `uint8`, and the names of the 100 classes, sorted.

    The images are sorted by class, 600 per class, the official training images first. They are read from
    the sheets `<folder>/<class>.webp` if there are any, else from `<folder>/cifar-100-binary.tar.gz`.

    A sheet is a lossless image of 800x768 pixels: 24 rows of 25 images, in the order of the class.

    Raises:
        FileNotFoundError: neither the archive nor a sheet is there (and `download` is False), or some
            sheets are missing; the message names them.
        ValueError: a file is damaged, or its contents differ from `data/sources.yaml`.
        ConnectionError: the download failed.
        ImportError: reading sheets needs Pillow, a download pooch, which is missing.
    """
    facts = source("cifar100")
    names = tuple(sorted(name for part in split_file("cifar_fs").values() for name in part))
    sheets = [folder / f"{name}.webp" for name in names]
    missing = [path.name for path in sheets if not path.is_file()]
    if not missing:
        return _check(_read_sheets(sheets), facts, folder), names
    if len(missing) < len(sheets) and not any((folder / name).is_file() for name in facts["archives"]):
        raise FileNotFoundError(
            f"{folder} has {len(sheets) - len(missing)} of the {len(sheets)} sheets of CIFAR-100; it lacks"
            f" {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; {_AGAIN}"
        )
    ((name, official),) = facts["archives"].items()
    path = official_archive(
        folder / name, official, "CIFAR-100", prepared="<class>.webp", download=download
    )
    return read_archive(path)


def read_archive(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The images and class names of the official binary archive, as `load` returns them.

    Raises:
        ValueError: the archive is damaged, lacks a file, or contains the pickles of the Python version.
    """
    try:
        parts = _members(path)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or altered ({error}); download it again.") from error
    names = tuple(parts["fine_label_names.txt"].decode("ascii", "replace").split())
    images, labels = [], []
    for part in _PARTS[:2]:
        content = np.frombuffer(parts[part], np.uint8)
        if content.size % _RECORD:
            raise ValueError(
                f"{path}: {part} has {content.size:,} bytes, which is no multiple of {_RECORD:,}, the size"
                " of one image and its labels; download it again."
            )
        records = content.reshape(-1, _RECORD)
        images.append(records[:, 2:])
        labels.append(records[:, 1])
    label = np.concatenate(labels)
    if label.size and label.max() >= len(names):
        raise ValueError(
            f"{path}: an image has the label {label.max()}, but there are {len(names)} classes;"
            " download it again."
        )
    order = np.lexsort((np.arange(len(label)), np.asarray(names)[label]))
    return np.concatenate(images)[order].reshape(-1, 3, 32, 32), tuple(sorted(names))


def _members(path: Path) -> dict[str, bytes]:
    """The contents of the files in `_PARTS`. Nothing is unpacked, and no pickle is loaded."""
    parts: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        for name in _PARTS:
            stream = archive.extractfile(members[name]) if name in members else None
            if stream is None:
                pickles = {"train", "test", "meta"} & set(members)
                reason = (
                    f"it contains the pickles {', '.join(sorted(pickles))}, which are never loaded"
                    if pickles
                    else f"it has no {name}"
                )
                raise ValueError(
                    f"{path} is not the binary version of CIFAR-100: {reason}; download"
                    " cifar-100-binary.tar.gz."
                )
            parts[name] = stream.read()
    return parts


def _read_sheets(sheets: list[Path]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Reading the sheets of CIFAR-100 requires Pillow: pip install 'metamtl[images]'."
        ) from error
    rows, columns = SHEET
    images = np.empty((len(sheets), PER_CLASS, 3, 32, 32), np.uint8)
    for i, path in enumerate(sheets):
        try:
            with Image.open(path) as sheet:
                pixels = np.asarray(sheet.convert("RGB"))
            grid = pixels.reshape(rows, 32, columns, 32, 3)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{path} is truncated or altered ({error}); {_AGAIN}") from error
        images[i] = grid.transpose(0, 2, 4, 1, 3).reshape(PER_CLASS, 3, 32, 32)
    return images.reshape(-1, 3, 32, 32)


def _check(images: np.ndarray, facts: Mapping[str, Any], folder: Path) -> np.ndarray:
    digest, expected = hashlib.sha256(images.data).hexdigest(), facts["prepared"]["sha256"]
    if digest != expected:
        raise ValueError(
            f"the sheets of CIFAR-100 in {folder} were altered: sha256 of their images is {digest},"
            f" expected {expected}; {_AGAIN}"
        )
    return images
