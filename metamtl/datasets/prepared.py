"""Read and write prepared data sets: npz archives without pickles, and JSON Lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..functional.atomic_write import atomic_write
from .archives import load_npz
from .files import VARIABLE, data_folder

Arrays = dict[str, np.ndarray]
Dir = str | os.PathLike[str] | None


def read_arrays(name: str, file: str, needed: Iterable[str], data_dir: Dir = None) -> Arrays:
    """Read the arrays of `<data_dir>/<name>/<file>`.

    Raises:
        FileNotFoundError: the file is missing; the message explains how to prepare it.
        ValueError: the file is damaged, or lacks one of the `needed` arrays.
    """
    path = _found(name, file, data_dir)
    try:
        arrays = load_npz(path)
    except ValueError as error:
        raise ValueError(f"{path} is truncated or altered ({error}); {_anew(name)}") from error
    if missing := [key for key in needed if key not in arrays]:
        raise ValueError(f"{path} has no {', '.join(missing)}; {_anew(name)}")
    return arrays


def read_lines(name: str, file: str, needed: Iterable[str], data_dir: Dir = None) -> list[dict[str, Any]]:
    """Read the objects of `<data_dir>/<name>/<file>`, one JSON object per line.

    Raises:
        FileNotFoundError, ValueError: as in `read_arrays`; the message contains the line number.
    """
    path = _found(name, file, data_dir)
    needed, entries = set(needed), []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                entry = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}, is not JSON ({error}); {_anew(name)}") from error
            if not isinstance(entry, dict) or needed - set(entry):
                raise ValueError(f"{path}, line {number}, lacks one of {sorted(needed)}; {_anew(name)}")
            entries.append(entry)
    if not entries:
        raise ValueError(f"{path} is empty; {_anew(name)}")
    return entries


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write an npz archive atomically."""
    with atomic_write(path) as partial:
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]


def write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        for entry in entries:
            stream.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n")


def official(folder: Path, *names: str) -> list[Path]:
    """Paths of the official files in `folder` or its subfolders, in the order of `names`.

    Raises:
        FileNotFoundError: a file is missing; the message lists all required files.
    """
    paths = []
    for name in names:
        matches = sorted(path for path in folder.rglob(name) if path.is_file()) if folder.is_dir() else []
        if not matches:
            raise FileNotFoundError(
                f"{folder} does not contain {name}; the official files are {', '.join(names)}."
            )
        paths.append(matches[0])
    return paths


def text(path: Path) -> str:
    """Read the text of an official file: UTF-8, or else Latin-1, which some of them use."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _found(name: str, file: str, data_dir: Dir) -> Path:
    path = data_folder(name, data_dir) / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is not in {path.parent}: no {file}. Download the official files (URLs in"
            f" data/sources.yaml) and run `python -m metamtl.datasets.prepare {name} --from FOLDER --to"
            f" {path.parent.parent}`, or set the folder that contains {name}/ with data_dir= or {VARIABLE}."
        )
    return path


def _anew(name: str) -> str:
    return f"prepare it again: `python -m metamtl.datasets.prepare {name} --from FOLDER --to DATA_DIR`."
