"""A mean over tasks, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Mean of a measure over n tasks (or examples, or seeds).

    Attributes:
        mean: the mean.
        ci95: half width of its 95 % interval, Student t over the n values; NaN where n = 1.
        n: number of values.
        worst_decile: mean of the worst tenth of the values (the worst one, where n < 20).
        values: the values themselves, `[n]`.
    """

    mean: float
    ci95: float
    n: int
    worst_decile: float
    values: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, values: Tensor, *, higher_is_better: bool = False) -> Estimate:
        """From one value for each task.

        >>> import torch
        >>> Estimate.of(torch.tensor([1.0, 2.0, 3.0]))
        Estimate(mean=2.0, ci95=2.484..., n=3, worst_decile=3.0)
        """
        values = values.detach().flatten().double().cpu()
        n = values.numel()
        if n == 0:
            raise ValueError("an Estimate needs at least one value.")
        spread = float(values.std()) if n > 1 else math.nan
        ci95 = student_t(n - 1) * spread / math.sqrt(n) if n > 1 else math.nan
        tail = values.sort(descending=not higher_is_better).values[: max(1, n // 10)]
        return cls(float(values.mean()), ci95, n, float(tail.mean()), values)

    def as_dict(self) -> dict[str, float]:
        """`{mean, ci95, n, worst_decile}`, for a result file."""
        return {"mean": self.mean, "ci95": self.ci95, "n": self.n, "worst_decile": self.worst_decile}

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.ci95:.4f} (n={self.n})"


def delta_m(
    found: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> float:
    """How much better several tasks are together than each by itself, in percent of the latter.

    `100 / T * sum_t s_t (found_t - baseline_t) / |baseline_t|`, `s_t` being 1 where higher is better, else
    -1: above 0 is better than the baseline (Maninis et al. 2019, https://arxiv.org/abs/1904.08918).

    Args:
        found: a measure of each task, by name.
        baseline: the same of models for one task each.
        higher_is_better: the direction of each measure.

    Raises:
        ValueError: names that differ, or a baseline of zero, to which nothing is relative.

    >>> delta_m({"tone": 0.9, "length": 3.0}, {"tone": 0.8, "length": 4.0}, {"tone": True, "length": False})
    18.75
    """
    if found.keys() != baseline.keys():
        raise ValueError(
            f"delta_m compares the same tasks; found {sorted(found)}, in the baseline {sorted(baseline)}."
        )
    if empty := [name for name, value in baseline.items() if value == 0 or not math.isfinite(value)]:
        raise ValueError(
            f"the baseline of {', '.join(empty)} is zero or not finite, and no change is relative to that;"
            " train it for longer, or leave the task out."
        )
    signed = {name: found[name] - value for name, value in baseline.items()}
    changes = [
        (change if higher_is_better[name] else -change) / abs(baseline[name])
        for name, change in signed.items()
    ]
    return 100 * sum(changes) / len(changes)


@lru_cache(maxsize=256)
def student_t(df: int, level: float = 0.975) -> float:
    """Quantile of Student's t with `df` degrees of freedom, 97.5 % unless told.

    By bisection on the distribution function, `1/2 + c int_0^a cos^(df-1)` with `a = atan(t/sqrt(df))`,
    integrated by Gauss and Legendre: ten digits, without a statistics package.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)

    def probability(t: float) -> float:
        angle = math.atan(t / math.sqrt(df))
        points = angle * (nodes + 1) / 2
        return 0.5 + scale * angle / 2 * float(weights @ np.cos(points) ** (df - 1))

    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < level else (low, middle)
    return (low + high) / 2
