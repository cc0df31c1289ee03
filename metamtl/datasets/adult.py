"""Adult: the 1994 US census data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .prepared import Arrays, Dir, official, read_arrays, text, write_arrays

FILE = "adult.npz"
COLUMNS = (  # columns of adult.data
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
    """Load `numeric` `[32561, 6]`, `categorical` `[32561, 9]` (codes), and the names of their columns."""
    return read_arrays("adult", FILE, NEEDED, data_dir)


def prepare(source: Path, folder: Path) -> Path:
    """Prepare `adult.npz` from `adult.data`: 15 comma-separated columns, no header; `?` is missing."""
    (path,) = official(source, "adult.data")
    rows = [[cell.strip() for cell in line.split(",")] for line in text(path).splitlines() if line.strip()]
    if invalid := [number for number, row in enumerate(rows, 1) if len(row) != len(COLUMNS)]:
        raise ValueError(
            f"{path}: rows {invalid[:5]} do not have {len(COLUMNS)} columns; download the file again."
        )
    table = {name: np.array(cells) for name, cells in zip(COLUMNS, zip(*rows))}
    levels = {name: np.unique(table[name], return_inverse=True) for name in CATEGORICAL}
    arrays = {
        "numeric_names": np.array(NUMERIC),
        "numeric": np.stack([table[name].astype(np.int32) for name in NUMERIC], 1),
        "categorical_names": np.array(CATEGORICAL),
        "categorical": np.stack([codes.astype(np.uint8) for _, codes in levels.values()], 1),
        **{f"levels_{name}": strings for name, (strings, _) in levels.items()},
    }
    write_arrays(folder / FILE, arrays)
    return folder / FILE
