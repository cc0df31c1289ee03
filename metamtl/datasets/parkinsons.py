"""Parkinson's telemonitoring: voice recordings and disease scores."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from .prepared import Arrays, Dir, official, read_arrays, text, write_arrays

FILE = "parkinsons_updrs.npz"
NEEDED = ("x", "y", "subject")
TARGETS = ("motor_UPDRS", "total_UPDRS")


def load(data_dir: Dir = None) -> Arrays:
    """Load `x` `[5875, 19]`, `y` `[5875, 2]` and `subject` `[5875]`."""
    return read_arrays("parkinsons", FILE, NEEDED, data_dir)


def prepare(source: Path, folder: Path) -> Path:
    """Prepare `parkinsons_updrs.npz` from the official `parkinsons_updrs.data`, a comma-separated table."""
    (path,) = official(source, "parkinsons_updrs.data")
    header, *rows = [row for row in csv.reader(io.StringIO(text(path))) if row]
    table = np.array(rows, np.float64)
    names = [name.strip() for name in header]
    features = [i for i, name in enumerate(names) if name not in ("subject#", *TARGETS)]
    write_arrays(
        folder / FILE,
        {
            "x": table[:, features],
            "y": table[:, [names.index(name) for name in TARGETS]],
            "subject": table[:, names.index("subject#")].astype(np.int16),
            "x_names": np.array([names[i] for i in features]),
            "y_names": np.array(TARGETS),
        },
    )
    return folder / FILE
