"""The prepared form of a data set: npz archives without pickles, and JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .files import VARIABLE, atomic_write, data_folder

Arrays = dict[str, np.ndarray]
Dir = str | os.PathLike[str] | None


def read_arrays(name: str, file: str, needed: Iterable[str], data_dir: Dir = None) -> Arrays:
    """The arrays of `<data_dir>/<name>/<file>`.

    Raises:
        FileNotFoundError: it is not there; the message says how to make it.
        ValueError: it is damaged, or has not the arrays that are `needed`.
    """
    path = _found(name, file, data_dir)
    try:
        # Opened here, since np.load leaves the file open when it is no zip.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # zip, zlib, numpy: a wrong byte may surface as nearly any error
        raise ValueError(f"{path} is truncated or altered ({error!r}); {_anew(name)}") from error
    if lacking := [key for key in needed if key not in arrays]:
        raise ValueError(f"{path} has no {', '.join(lacking)}; {_anew(name)}")
    return arrays


def read_lines(name: str, file: str, needed: Iterable[str], data_dir: Dir = None) -> list[dict[str, Any]]:
    """The objects of `<data_dir>/<name>/<file>`, one JSON object a line.

    Raises:
        FileNotFoundError, ValueError: as `read_arrays`; the message names the line.
    """
    path = _found(name, file, data_dir)
    needed, found = set(needed), []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is no JSON ({error}); {_anew(name)}") from error
            if not isinstance(entry, dict) or needed - set(entry):
                raise ValueError(f"{path}, line {number}, lacks one of {sorted(needed)}; {_anew(name)}")
            found.append(entry)
    if not found:
        raise ValueError(f"{path} is empty; {_anew(name)}")
    return found


def write_arrays(path: Path, arrays: Arrays) -> None:
    """An npz archive, complete or not there."""
    with atomic_write(path) as partial:
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]


def write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, complete or not there."""
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        for entry in entries:
            stream.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n")


def official(folder: Path, *names: str) -> list[Path]:
    """The official files of these names anywhere under `folder`, in this order.

    Raises:
        FileNotFoundError: one of them is missing; the message lists all that are needed.
    """
    found = []
    for name in names:
        hits = sorted(path for path in folder.rglob(name) if path.is_file()) if folder.is_dir() else []
        if not hits:
            raise FileNotFoundError(f"{folder} holds no {name}; the official files are {', '.join(names)}.")
        found.append(hits[0])
    return found


def text(path: Path) -> str:
    """The text of an official file: UTF-8, or else Latin-1, in which some of them were saved."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _found(name: str, file: str, data_dir: Dir) -> Path:
    path = data_folder(name, data_dir) / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is not in {path.parent}: no {file}. Get the official files from the address in"
            f" data/sources.yaml and run `python -m metamtl.datasets.prepare {name} --from FOLDER --to"
            f" {path.parent.parent}`, or name the folder that holds {name}/ with data_dir= or {VARIABLE}."
        )
    return path


def _anew(name: str) -> str:
    return f"make it anew: `python -m metamtl.datasets.prepare {name} --from FOLDER --to DATA_DIR`."
