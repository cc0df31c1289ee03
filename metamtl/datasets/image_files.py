"""Folders of image files: list the files of each class, check them, read one image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..functional.random_state import seeded

Mode = Literal["RGB", "L"]
Augment = Callable[[Any], Any]  # maps a Pillow image to a Pillow image

_NAMED = 10  # number of files that an error lists


def pillow() -> Any:
    """The modules `PIL.Image` and `PIL.ImageOps`.

    Raises:
        ImportError: Pillow is missing.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("Reading images requires Pillow: pip install 'metamtl[images]'.") from error
    return Image, ImageOps


def class_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each class, `folder/<class>/...`, both sorted; hidden files and folders are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder has no subfolders, or a subfolder has no files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; pass a folder with one subfolder per class.")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))
    if not subfolders:
        raise ValueError(
            f"{folder} has no subfolders; put the images of each class into its own subfolder."
        )
    files = {path.name: _files(path) for path in subfolders}
    if empty := [name for name, paths in files.items() if not paths]:
        raise ValueError(f"{folder}: no files in {_listed(empty)}; add images or remove these folders.")
    return files


def check_images(paths: Iterable[Path], *, full: bool = False) -> None:
    """Open every file; by default only its header is read, with `full` the whole image is decoded.

    Raises:
        ValueError: some files are damaged or no images; the message lists them.
    """
    image_module, _ = pillow()
    damaged = []
    for path in paths:
        try:
            with image_module.open(path) as image:
                if full:
                    image.load()
        except (*_ERRORS, image_module.DecompressionBombError) as error:
            damaged.append(f"{path} ({_reason(error)})")
    if damaged:
        raise ValueError(
            f"{len(damaged)} files are damaged or are no images; replace or remove them:"
            f" {_listed(damaged)}."
        )


def read_image(
    path: Path, size: int, mode: Mode = "RGB", augment: Augment | None = None, seed: int = 0
) -> Tensor:
    """Read an image as `uint8` `[C, size, size]`.

    The image is turned upright (EXIF), converted to `mode` (transparent pixels become white, 16 bits become
    8), augmented, cropped to the largest square in its center and resized (bilinear).

    Args:
        path: the file.
        size: height and width of the result.
        mode: `"RGB"` (C = 3) or `"L"` (grayscale, C = 1).
        augment: maps a Pillow image to a Pillow image. Torch's global generator has the state `seed` during
            the call, and is restored after it, so that transforms of torchvision are deterministic.
        seed: see `augment`.

    Raises:
        ValueError: the file is damaged; the message names it.
        TypeError: `augment` returns no Pillow image.
    """
    image_module, operations = pillow()
    try:
        with image_module.open(path) as image:
            picture = _converted(operations.exif_transpose(image), mode)
    except (*_ERRORS, image_module.DecompressionBombError) as error:
        raise ValueError(f"{path} is damaged or is no image ({_reason(error)}).") from error
    if augment is not None:
        with seeded(seed):
            picture = augment(picture)
        if not isinstance(picture, image_module.Image):
            raise TypeError(
                f"augment returned a {type(picture).__name__}; it must return a Pillow image, because"
                " images are resized and converted afterwards."
            )
        picture = picture.convert(mode)
    if picture.size != (size, size):
        picture = operations.fit(picture, (size, size), image_module.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture))
    return pixels.movedim(-1, 0) if pixels.dim() == 3 else pixels[None]


_ERRORS = (OSError, SyntaxError, ValueError, EOFError)  # what Pillow raises for damaged files


def _converted(image: Any, mode: Mode) -> Any:
    image_module, _ = pillow()
    if image.mode.startswith("I"):  # 16 bits; convert() would clip the values at 255
        values = np.asarray(image).astype(np.int64)
        return image_module.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert(mode)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = image_module.new("RGBA", image.size, (255, 255, 255, 255))
        image = image_module.alpha_composite(white, image)
    return image.convert(mode)


def _files(folder: Path) -> list[Path]:
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        paths += [Path(parent) / name for name in names if not _hidden(name)]
    return sorted(paths)


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "unknown format" if "cannot identify image file" in text else text


def _listed(entries: list[str]) -> str:
    rest = len(entries) - _NAMED
    return ", ".join(entries[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
