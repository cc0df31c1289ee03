"""Unpack archives that may be damaged or hostile."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from struct import error as struct_error
from typing import IO, Any

import numpy as np

LIMIT = 8 * 2**30  # bytes that an archive may have when it is unpacked; the largest known set has 0.2 GB
ENTRIES = 1_000_000


def unzip(path: Path, folder: Path) -> None:
    """Unpack a zip archive into a folder.

    Raises:
        ValueError: the archive is damaged, has an entry outside the folder, a link, or unpacks to more than
            `LIMIT`; nothing is written then.
    """
    with _opened(path) as archive:
        for entry in archive.infolist():
            _check_name(path, entry)
        for entry in archive.infolist():
            target = folder / entry.filename
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def gunzip(path: Path) -> bytes:
    """The content of a gzip file.

    Raises:
        ValueError: the file is damaged, or its content is larger than `LIMIT`.
    """
    try:
        with gzip.open(path) as stream:
            content = stream.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or altered ({error}); download it again.") from error
    if path.stat().st_size == 0:  # gzip reads this as empty content
        raise ValueError(f"{path} is truncated or altered (it is empty); download it again.")
    if len(content) > LIMIT:
        raise ValueError(f"{path} unpacks to more than {LIMIT:,} bytes; it is not the official file.")
    return content


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file. Nothing in the file is executed: pickled arrays are rejected.

    Raises:
        ValueError: the file is damaged, has something else than arrays of numbers and text, or is larger
            than `LIMIT`.
    """
    with _opened(path) as archive:
        arrays = {}
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                raise ValueError(f"{path} has {entry.filename!r}, which is not an array.")
            with archive.open(entry) as stream:
                arrays[entry.filename.removesuffix(".npy")] = _array(path, entry, stream)
        return arrays


def _array(path: Path, entry: zipfile.ZipInfo, stream: IO[bytes]) -> np.ndarray:
    content = io.BytesIO(stream.read())
    # The header may declare any shape; numpy would allocate it before it reads.
    try:
        version = np.lib.format.read_magic(content)
        read: Any = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
        shape, _, dtype = read(content)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {entry.filename} is not an array ({error}).") from error
    if dtype.hasobject:
        raise ValueError(f"{path}: {entry.filename} has pickled objects, which are never loaded.")
    size, declared = entry.file_size - content.tell(), dtype.itemsize
    for length in shape:  # Python's integers do not overflow
        declared *= int(length)
    if declared != size:
        raise ValueError(
            f"{path}: {entry.filename} declares shape {shape}, {declared:,} bytes, and has {size:,}."
        )
    content.seek(0)
    return np.lib.format.read_array(content, allow_pickle=False)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive within its limits; what zipfile and zlib raise becomes a ValueError."""
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
            if total > LIMIT or len(archive.infolist()) > ENTRIES:
                raise ValueError(
                    f"{path} has {len(archive.infolist()):,} entries that unpack to {total:,} bytes; more"
                    f" than {LIMIT:,} bytes or {ENTRIES:,} entries are not unpacked."
                )
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        # RuntimeError: encrypted; NotImplementedError: an unknown kind of compression
        raise ValueError(f"{path} is truncated or altered ({error}).") from error
    except (struct_error, UnicodeDecodeError, OverflowError, MemoryError, OSError) as error:
        raise ValueError(f"{path} is truncated or altered ({error!r}).") from error


def _check_name(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name.startswith("\\")
    if absolute or ".." in parts or "\0" in name or not name:
        raise ValueError(
            f"{path} has the entry {name!r}, which is outside the folder; nothing was unpacked."
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ValueError(f"{path} has the entry {name!r}, which is a link; nothing was unpacked.")
