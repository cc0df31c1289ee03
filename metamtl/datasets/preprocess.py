"""Small steps of preparation that the data sets share; what is fitted is fitted on training rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..functional.labels import MISSING
from .files import SPLITS


def chosen(tasks: Iterable[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The tasks to keep, in the order given; all, where None.

    Raises:
        ValueError: an unknown task, one named twice, or none.
    """
    names = tuple(known if tasks is None else tasks)
    if not names or len(set(names)) < len(names) or set(names) - set(known):
        raise ValueError(f"tasks={names} must be different names out of {', '.join(known)}.")
    return names


def split_groups(
    groups: np.ndarray, parts: tuple[float, float, float], seed: int = 0
) -> dict[str, np.ndarray]:
    """Positions of train, validation and test examples, so that no group is in two of them.

    `groups` `[M]` numbers what belongs together: recordings of one patient, copies of one row. The groups
    are shuffled by `seed` and dealt out by number in the proportions `parts`; positions are sorted.

    >>> {name: at.tolist() for name, at in split_groups(np.array([7, 7, 8, 9]), (0.34, 0.33, 0.33)).items()}
    {'train': [3], 'validation': [0, 1], 'test': [2]}
    """
    found = np.random.default_rng(seed).permutation(np.unique(groups))
    bounds = np.rint(np.cumsum([0.0, *parts]) / sum(parts) * len(found)).astype(int)
    if (np.diff(bounds) < 1).any():
        raise ValueError(f"{len(found)} groups are too few for three splits of {parts}.")
    return {
        name: np.flatnonzero(np.isin(groups, found[low:high]))
        for name, low, high in zip(SPLITS, bounds, bounds[1:])
    }


def standardized(values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns less their mean, over their deviation, both of the `train` rows alone; and the two.

    A column that is constant in training is only shifted.
    """
    mean, deviation = values[train].mean(0), values[train].std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return (values - mean) / deviation, mean, deviation


def targets(values: np.ndarray, missing: float | None = None) -> Tensor:
    """Floating-point targets `[M, 1]`, NaN where the value is `missing`."""
    y = torch.as_tensor(np.asarray(values, dtype=np.float64)).to(torch.get_default_dtype())
    return (y if missing is None else y.masked_fill(y == missing, torch.nan))[:, None]


def classes(values: np.ndarray) -> Tensor:
    """Class labels `[M]`; what is negative is missing."""
    y = torch.as_tensor(np.asarray(values)).long()
    return y.masked_fill(y < 0, MISSING)
