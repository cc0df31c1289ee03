"""Omniglot: the official archives, and the compact file prepared from them."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..functional.atomic_write import atomic_write
from .archives import load_npz
from .files import source
from .official_archive import official_archive

Arrays = dict[str, np.ndarray]

DRAWERS = 20
_DRAWING = re.compile(r"images_(background|evaluation)/([^/]+)/(character\d\d)/(\d{4})_(\d\d)\.png")
_TYPES = {  # dtypes of the prepared file; all arrays but the last three have one row per image
    "images": "|u1",
    "character": "<i2",
    "alphabet": "|i1",
    "drawer": "|i1",
    "evaluation": "|b1",
    "source_id": "<i2",
    "alphabet_names": "<U41",
    "alphabet_is_evaluation": "|b1",
    "character_names": "<U53",
}
_ANEW = "delete it; it is prepared again from the official archives (download=True downloads them)."


def load(folder: Path, *, download: bool = False) -> Arrays:
    """Load `<folder>/omniglot_28_u8.npz`, or prepare it from the two archives if it is missing.

    Returns `images` `[32460, 28, 28]`, `uint8`, 255 = ink, sorted by set, alphabet, character and drawer;
    `character`, `alphabet`, `drawer`, `evaluation`, `source_id`, each `[32460]`; `alphabet_names`,
    `alphabet_is_evaluation` `[50]`, `character_names` `[1623]`.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: as in `Omniglot`.
    """
    facts = source("omniglot")
    prepared = folder / facts["prepared"]["file"]
    if prepared.is_file():
        return _check(_read(prepared), facts, prepared)
    archives = [
        official_archive(folder / name, official, "Omniglot", prepared=prepared.name, download=download)
        for name, official in facts["archives"].items()
    ]
    arrays = _check(prepare(archives), facts, f"data prepared from the archives in {folder}")
    with atomic_write(prepared) as partial:
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
    return arrays


def prepare(archives: Iterable[Path]) -> Arrays:
    """Convert the official archives to the arrays described in `load`.

    The ink mask (255 = ink, 0 = background) is resized from 105x105 with PIL's LANCZOS filter.

    Raises:
        ImportError: Pillow is missing.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("Preparing Omniglot requires Pillow: pip install 'metamtl[images]'.") from error
    drawings = []
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not (match := _DRAWING.fullmatch(name)):
                    continue  # folders, and files added by a file manager
                kind, alphabet, character, source, drawer = match.groups()
                with Image.open(io.BytesIO(archive.read(name))) as drawing:
                    ink = ImageOps.invert(drawing.convert("L"))
                small = np.asarray(ink.resize((28, 28), Image.Resampling.LANCZOS))
                key = (kind == "evaluation", alphabet, f"{alphabet}/{character}", int(drawer), int(source))
                drawings.append((key, small))
    drawings.sort(key=lambda item: item[0])
    rows = [key for key, _ in drawings]
    alphabets = {pair: i for i, pair in enumerate(dict.fromkeys((row[0], row[1]) for row in rows))}
    characters = {name: i for i, name in enumerate(dict.fromkeys(row[2] for row in rows))}
    columns: dict[str, Any] = {
        "images": np.stack([small for _, small in drawings]) if drawings else np.zeros((0, 28, 28)),
        "character": [characters[row[2]] for row in rows],
        "alphabet": [alphabets[row[:2]] for row in rows],
        "drawer": [row[3] for row in rows],
        "evaluation": [row[0] for row in rows],
        "source_id": [row[4] for row in rows],
        "alphabet_names": [name for _, name in alphabets],
        "alphabet_is_evaluation": [evaluation for evaluation, _ in alphabets],
        "character_names": list(characters),
    }
    return {name: np.asarray(columns[name], dtype) for name, dtype in _TYPES.items()}


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the contents of the arrays, independent of the compression of the file."""
    digest = hashlib.sha256()
    for name in _TYPES:
        values = arrays[name]
        digest.update(f"{name} {values.dtype.str} {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Arrays:
    try:
        return load_npz(path)
    except ValueError as error:
        raise ValueError(f"{path} is truncated or altered ({error}); {_ANEW}") from error


def _check(arrays: Arrays, facts: Mapping[str, Any], where: str | Path) -> Arrays:
    """Raise a ValueError if the contents differ; counts are checked first for more specific errors."""
    remedy = _ANEW if isinstance(where, Path) else "try another version of Pillow."
    missing = [name for name in _TYPES if name not in arrays]
    if missing:
        raise ValueError(f"{where} was altered: it has no {', '.join(missing)}; {remedy}")
    expected = facts["prepared"]
    for name, count in expected["counts"].items():
        if len(arrays[name]) != count:
            raise ValueError(
                f"{where} was altered: {name} has {len(arrays[name])} entries, expected {count}; {remedy}"
            )
    digest = checksum(arrays)
    if digest != expected["sha256"]:
        raise ValueError(
            f"{where} was altered: sha256 of its contents is {digest}, expected {expected['sha256']};"
            f" {remedy}"
        )
    return arrays
