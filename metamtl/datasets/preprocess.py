"""Preprocessing shared by the data sets; statistics use the training rows only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..functional.labels import MISSING
from .files import SPLITS


def chosen(tasks: Iterable[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The tasks to keep, in the order of `tasks`; if None, all.

    Raises:
        ValueError: no task, an unknown or a duplicate task.
    """
    names = tuple(known if tasks is None else tasks)
    if not names or len(set(names)) < len(names) or set(names) - set(known):
        raise ValueError(f"tasks={names} must be different names out of {', '.join(known)}.")
    return names


def split_groups(
    groups: np.ndarray, parts: tuple[float, float, float], seed: int = 0
) -> dict[str, np.ndarray]:
    """Split examples into train, validation and test, so that every group is in one split only.

    `groups` `[M]` is the group of each example, such as the patient of a recording. The groups are shuffled
    with `seed` and divided in the proportions `parts`; the returned positions are sorted.

    >>> {name: at.tolist() for name, at in split_groups(np.array([7, 7, 8, 9]), (0.34, 0.33, 0.33)).items()}
    {'train': [3], 'validation': [0, 1], 'test': [2]}
    """
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    bounds = np.rint(np.cumsum([0.0, *parts]) / sum(parts) * len(order)).astype(int)
    if (np.diff(bounds) < 1).any():
        raise ValueError(f"{len(order)} groups are too few for three splits of {parts}.")
    return {
        name: np.flatnonzero(np.isin(groups, order[low:high]))
        for name, low, high in zip(SPLITS, bounds, bounds[1:])
    }


def standardized(values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardize columns with the mean and standard deviation of the `train` rows; return all three.

    A column that is constant in the training rows is only shifted.
    """
    mean, deviation = values[train].mean(0), values[train].std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return (values - mean) / deviation, mean, deviation


def targets(values: np.ndarray, missing: float | None = None) -> Tensor:
    """Floating-point targets `[M, 1]`, NaN where the value is `missing`."""
    y = torch.as_tensor(np.asarray(values, dtype=np.float64)).to(torch.get_default_dtype())
    return (y if missing is None else y.masked_fill(y == missing, torch.nan))[:, None]


def classes(values: np.ndarray) -> Tensor:
    """Class labels `[M]`; negative values become `MISSING`."""
    y = torch.as_tensor(np.asarray(values)).long()
    return y.masked_fill(y < 0, MISSING)
