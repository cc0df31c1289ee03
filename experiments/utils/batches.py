"""Estimates over batches, and what is beyond their noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from metamtl import Estimate, analysis
from metamtl.estimate import student_t


def over_batches(values: Sequence[Any]) -> Estimate:
    """The mean of one number for each batch, with its interval."""
    return Estimate.of(torch.tensor([float(value) for value in values], dtype=torch.float64))


def scalars(results: Sequence[analysis.Result]) -> dict[str, Estimate]:
    """The estimates of all scalars that are finite for every batch."""
    rows = [result.scalars() for result in results]
    names = [name for name in rows[0] if all(math.isfinite(row.get(name, math.nan)) for row in rows)]
    return {name: over_batches([row[name] for row in rows]) for name in names}


def corrected(value: Estimate, choices: int) -> Estimate:
    """The same mean with an interval that holds for all of `choices` estimates at the same time.

    Bonferroni: the one that is reported was chosen among them because it is the largest, or the smallest.

    >>> first = Estimate.of(torch.tensor([1.0, 2.0, 3.0]))
    >>> corrected(first, 1) == first, corrected(first, 10).ci95 / first.ci95
    (True, 3.27...)
    """
    if choices < 2 or value.n < 2:
        return value
    ratio = student_t(value.n - 1, 1 - 0.025 / choices) / student_t(value.n - 1)
    return replace(value, ci95=value.ci95 * ratio)


def below(value: Estimate, bound: float) -> bool:
    """Whether the whole interval is below the bound."""
    return value.mean + value.ci95 < bound


def above(value: Estimate, bound: float) -> bool:
    """Whether the whole interval is above the bound."""
    return value.mean - value.ci95 > bound
