"""Omniglot's files: the official archives, and the one compact file prepared from them."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .files import VARIABLE, atomic_write, sources

Arrays = dict[str, np.ndarray]

DRAWERS = 20
_DRAWING = re.compile(r"images_(background|evaluation)/([^/]+)/(character\d\d)/(\d{4})_(\d\d)\.png")
_TYPES = {  # of the prepared file, one row for each image but for the names
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
_ANEW = "delete it: it is prepared anew from the official archives (download=True fetches them)."


def load(folder: Path, *, download: bool = False) -> Arrays:
    """The arrays of `<folder>/omniglot_28_u8.npz`, which is made from the two archives if it is missing.

    Returns `images` `[32460, 28, 28]` of bytes, 255 = ink, sorted by set, alphabet, character and
    drawer; beside them `character`, `alphabet`, `drawer`, `evaluation`, `source_id` `[32460]`; and
    `alphabet_names`, `alphabet_is_evaluation` `[50]`, `character_names` `[1623]`.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: as `Omniglot`.
    """
    facts = sources()["omniglot"]
    prepared = folder / facts["prepared"]["file"]
    if prepared.is_file():
        return _check(_read(prepared), facts, prepared)
    archives = [_archive(folder / name, official, download) for name, official in facts["archives"].items()]
    arrays = _check(prepare(archives), facts, f"what was prepared from the archives in {folder}")
    with atomic_write(prepared) as partial:
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
    return arrays


def prepare(archives: Iterable[Path]) -> Arrays:
    """The official archives as compact arrays, in the form that `load` describes.

    The ink mask (255 = ink, 0 = paper) is resized from 105x105 with PIL's LANCZOS filter.

    Raises:
        ImportError: Pillow is missing.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("Omniglot is prepared with Pillow: pip install 'metamtl[omniglot]'.") from error
    drawings = []
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not (match := _DRAWING.fullmatch(name)):
                    continue  # folders, and what a file manager may have added
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
    """SHA-256 of what the arrays hold, however the file around them was compressed."""
    digest = hashlib.sha256()
    for name in _TYPES:
        values = arrays[name]
        digest.update(f"{name} {values.dtype.str} {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Arrays:
    try:
        # Opened here, since np.load leaves the file open when it is no zip.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zip, zlib, numpy: a wrong byte may surface as nearly any error
        raise ValueError(f"{path} is truncated or altered ({error!r}); {_ANEW}") from error


def _check(arrays: Arrays, facts: Mapping[str, Any], where: str | Path) -> Arrays:
    """Refuse anything but the known contents; counts first, since they say more than a checksum."""
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
    found = checksum(arrays)
    if found != expected["sha256"]:
        raise ValueError(
            f"{where} was altered: sha256 of its contents is {found}, expected {expected['sha256']};"
            f" {remedy}"
        )
    return arrays


def _archive(path: Path, official: Mapping[str, Any], download: bool) -> Path:
    """`path`, when it is the official archive; fetched first if it is missing and `download` is set."""
    if not path.is_file():
        if not download:
            raise FileNotFoundError(
                f"Omniglot is not in {path.parent}: found neither omniglot_28_u8.npz nor {path.name}. Give"
                f" download=True, or get the archive from {official['url']}, or name the folder that holds"
                f" omniglot/ with data_dir=... or {VARIABLE}."
            )
        _download(path, official)
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != official["sha256"]:
        raise ValueError(
            f"{path} is truncated or altered: {len(data):,} bytes with sha256 {found}, expected"
            f" {official['bytes']:,} bytes with sha256 {official['sha256']}; delete it, then give"
            f" download=True or get it anew from {official['url']}."
        )
    return path


def _download(path: Path, official: Mapping[str, Any]) -> None:
    try:
        import pooch
    except ImportError as error:
        raise ImportError("Omniglot is downloaded with pooch: pip install 'metamtl[omniglot]'.") from error
    try:
        # Under a temporary name until the checksum agrees.
        pooch.retrieve(official["url"], f"sha256:{official['sha256']}", fname=path.name, path=path.parent)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum a ValueError
        raise ConnectionError(
            f"{path.name} could not be downloaded from {official['url']}: {error}. Nothing was kept; try"
            f" again, or put the archive into {path.parent} by hand."
        ) from error
