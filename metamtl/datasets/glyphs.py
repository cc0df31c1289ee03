"""The drawn letters of the world's scripts: read from a file, or drawn into it."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .files import atomic_write, data_folder
from .glyph_drawing import EXAMPLES, SIZE, VERSION, draw

# What reading a file cut short, overwritten in part or of another kind raises.
_DAMAGE = (
    OSError,
    EOFError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    NotImplementedError,  # what zipfile says of a method that damage made up
    zipfile.BadZipFile,
    zlib.error,
)

_log = logging.getLogger(__name__)


def load(data_dir: str | os.PathLike[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of `glyph_drawing.draw`: read from the data folder, or drawn and written there."""
    # The version is in the name, so that two versions of metamtl can use one folder.
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
            _log.info("cannot keep the drawn letters in %s: %s", path, error)
        else:
            _log.info("drew %d letters into %s", len(arrays["labels"]) // EXAMPLES, path)
            break
    return arrays


def _folders(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The data folder; where the environment names it, then the user's cache for when it is read-only."""
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
        # Opened here, as numpy leaves open what it finds to be no npz file.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        found = int(arrays.pop("version"))
        pictures = (len(arrays["labels"]), SIZE, SIZE)
        whole = arrays["images"].shape == pictures
    except _DAMAGE as error:
        raise RuntimeError(
            f"{path} is not a whole file of drawn letters ({type(error).__name__}: {error});"
            " delete it, and the letters are drawn again."
        ) from error
    if found != VERSION or not whole:
        raise RuntimeError(
            f"{path} holds letters of drawing version {found}, images {list(arrays['images'].shape)}; this"
            f" metamtl needs version {VERSION}, {list(pictures)}. Delete it, and they are drawn again."
        )
    return arrays
