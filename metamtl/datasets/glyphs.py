"""Load the letters of `Glyphs` from a file; if it does not exist, draw them and write it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from ..functional.atomic_write import atomic_write
from .archives import load_npz
from .files import data_folder
from .glyph_drawing import EXAMPLES, SIZE, VERSION, draw

_log = logging.getLogger(__name__)


def load(data_dir: str | os.PathLike[str] | None = None) -> dict[str, np.ndarray]:
    """Load the arrays of `glyph_drawing.draw` from the data folder, or draw and write them."""
    # The file name contains the version, so that two versions of metamtl can share a folder.
    paths = [folder / f"glyphs-{VERSION}.npz" for folder in _folders(data_dir)]
    for path in paths:
        if os.access(path, os.R_OK):
            return _read(path)
    arrays = draw()
    for path in paths:
        try:
            with atomic_write(path) as partial:
                np.savez_compressed(partial, version=np.array(VERSION), **arrays)  # type: ignore[arg-type]
        except OSError as error:
            _log.info("cannot write the drawn letters to %s: %s", path, error)
        else:
            _log.info("wrote %d drawn letters to %s", len(arrays["labels"]) // EXAMPLES, path)
            break
    return arrays


def _folders(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The data folder; if `data_dir` is None, then also the user's cache, in case it is read-only."""
    folders = [data_folder("glyphs", data_dir)]
    if data_dir is not None:
        return folders
    try:
        import platformdirs
    except ImportError:
        return folders
    return list(dict.fromkeys([*folders, platformdirs.user_cache_path("metamtl") / "glyphs"]))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = load_npz(path)
        version = int(arrays.pop("version"))
        shape = (len(arrays["labels"]), SIZE, SIZE)
        complete = arrays["images"].shape == shape
    except (KeyError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"{path} is not a complete file of drawn letters ({type(error).__name__}: {error});"
            " delete it, and the letters are drawn again."
        ) from error
    if version != VERSION or not complete:
        raise RuntimeError(
            f"{path} has letters of drawing version {version}, images {list(arrays['images'].shape)}; this"
            f" metamtl needs version {VERSION}, {list(shape)}. Delete it, and they are drawn again."
        )
    return arrays
