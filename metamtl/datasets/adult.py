"""Adult: rows of the US census of 1994."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .prepared import Arrays, Dir, official, read_arrays, text, write_arrays

FILE = "adult.npz"
COLUMNS = (  # of adult.data
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
    *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country"),
    "income-per-year",
)
NUMERIC = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
CATEGORICAL = tuple(column for column in COLUMNS if column not in NUMERIC)
NEEDED = (
    "numeric",
    "numeric_names",
    "categorical",
    "categorical_names",
    *(f"levels_{c}" for c in CATEGORICAL),
)


def load(data_dir: Dir = None) -> Arrays:
    """`numeric` `[32561, 6]`, `categorical` `[32561, 9]` as codes, and the names of both."""
    return read_arrays("adult", FILE, NEEDED, data_dir)


def prepare(source: Path, folder: Path) -> Path:
    """`adult.npz` from the official `adult.data`: 15 columns with commas, no header; `?` is missing."""
    (path,) = official(source, "adult.data")
    rows = [[cell.strip() for cell in line.split(",")] for line in text(path).splitlines() if line.strip()]
    if wrong := [number for number, row in enumerate(rows, 1) if len(row) != len(COLUMNS)]:
        raise ValueError(f"{path}: rows {wrong[:5]} have not {len(COLUMNS)} columns; get the file anew.")
    table = {name: np.array(cells) for name, cells in zip(COLUMNS, zip(*rows))}
    levels = {name: np.unique(table[name], return_inverse=True) for name in CATEGORICAL}
    arrays = {
        "numeric_names": np.array(NUMERIC),
        "numeric": np.stack([table[name].astype(np.int32) for name in NUMERIC], 1),
        "categorical_names": np.array(CATEGORICAL),
        "categorical": np.stack([codes.astype(np.uint8) for _, codes in levels.values()], 1),
        **{f"levels_{name}": found for name, (found, _) in levels.items()},
    }
    write_arrays(folder / FILE, arrays)
    return folder / FILE
