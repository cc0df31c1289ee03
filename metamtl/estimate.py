"""Means over tasks with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Mean of a measure over n tasks (or examples, or seeds).

    Attributes:
        mean: the mean.
        ci95: half width of the 95 % confidence interval (Student's t over the n values); NaN if n = 1.
        n: number of values.
        worst_decile: mean of the worst tenth of the values (the worst one if n < 20).
        values: the values themselves, `[n]`.
        num_missing: number of examples that were excluded because they have no label.
    """

    mean: float
    ci95: float
    n: int
    worst_decile: float
    values: Tensor = field(repr=False, compare=False)
    num_missing: int = 0

    @classmethod
    def of(cls, values: Tensor, *, higher_is_better: bool = False, num_missing: int = 0) -> Estimate:
        """Compute the estimate from one value per task.

        >>> Estimate.of(torch.tensor([1.0, 2.0, 3.0]))
        Estimate(mean=2.0, ci95=2.484..., n=3, worst_decile=3.0, num_missing=0)
        """
        values = values if isinstance(values, Tensor) else torch.tensor(values, device="cpu")
        values = values.detach().flatten().double().cpu()
        n = values.numel()
        if n == 0:
            raise ValueError("an Estimate needs at least one value.")
        std = float(values.std()) if n > 1 else math.nan
        ci95 = student_t(n - 1) * std / math.sqrt(n) if n > 1 else math.nan
        tail = values.sort(descending=not higher_is_better).values[: max(1, n // 10)]
        return cls(float(values.mean()), ci95, n, float(tail.mean()), values, num_missing)

    def difference(self, other: Estimate) -> Estimate:
        """The paired difference `self - other` over the same tasks, in the same order.

        Its interval is that of the mean of the n differences. It is usually much narrower than those of the
        two means, because a hard task is hard for both. The difference is within the noise if its interval
        contains 0.

        Raises:
            ValueError: the numbers of values differ.

        >>> first, second = (Estimate.of(torch.tensor(x)) for x in ([0.5, 0.8, 0.9], [0.4, 0.7, 0.9]))
        >>> first.difference(second)
        Estimate(mean=0.066..., ci95=0.143..., n=3, worst_decile=0.0, num_missing=0)
        """
        if self.n != other.n:
            raise ValueError(
                f"a paired difference needs the same tasks, but the estimates have {self.n} and {other.n}"
                " values; evaluate both on the same episodes."
            )
        return Estimate.of(self.values - other.values, higher_is_better=True)

    def as_dict(self) -> dict[str, float]:
        """`{mean, ci95, n, worst_decile, num_missing}`, for a result file."""
        return {
            "mean": self.mean,
            "ci95": self.ci95,
            "n": self.n,
            "worst_decile": self.worst_decile,
            "num_missing": self.num_missing,
        }

    def __str__(self) -> str:
        missing = f", {self.num_missing} examples without a label" if self.num_missing else ""
        return f"{self.mean:.4f} ± {self.ci95:.4f} (n={self.n}{missing})"


def delta_m(
    values: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> float:
    """Relative improvement of multi-task learning over single-task models, in percent.

    `100 / T * sum_t s_t (values_t - baseline_t) / |baseline_t|`, where `s_t` is 1 if higher is better, else
    -1: above 0 is better than the baseline (Maninis et al. 2019, https://arxiv.org/abs/1904.08918).

    Args:
        values: the measure of each task, by name.
        baseline: the same measures of single-task models.
        higher_is_better: the direction of each measure.

    Raises:
        ValueError: there is no task, names differ, a task has no direction, a value is not finite, or a
            baseline is zero, so that no relative change is defined.
        TypeError: a value is not a number, or a direction is not a bool.

    >>> delta_m({"tone": 0.9, "length": 3.0}, {"tone": 0.8, "length": 4.0}, {"tone": True, "length": False})
    18.75
    """
    if values.keys() != baseline.keys() or not values:
        raise ValueError(
            f"values has the tasks {sorted(values)}, and baseline has {sorted(baseline)}; delta_m compares"
            " the same tasks."
        )
    if absent := [name for name in values if name not in higher_is_better]:
        raise ValueError(
            f"higher_is_better has no direction for {absent}; it has one for {sorted(higher_is_better)}."
            f" Add {absent[0]!r}: True if a higher value is better, else False."
        )
    if unclear := [name for name in values if not isinstance(higher_is_better[name], bool)]:
        raise TypeError(
            f"the direction of {', '.join(unclear)} is {higher_is_better[unclear[0]]!r}; pass True if a"
            " higher value is better, else False."
        )
    for argument, numbers in (("values", values), ("baseline", baseline)):
        if wrong := {n: type(v).__name__ for n, v in numbers.items() if not hasattr(v, "__float__")}:
            raise TypeError(f"{argument} holds {wrong}; pass numbers, such as the mean of an Estimate.")
    if unusable := [name for name, value in baseline.items() if value == 0 or not math.isfinite(value)]:
        raise ValueError(
            f"the baseline of {', '.join(unusable)} is zero or not finite, so the relative change is not"
            " defined; train it for longer, or exclude the task."
        )
    if diverged := [name for name, value in values.items() if not math.isfinite(value)]:
        raise ValueError(
            f"the measure of {', '.join(diverged)} is not finite; exclude the task from both, or lower the"
            " learning rate."
        )
    changes = [
        (1 if higher_is_better[name] else -1) * (values[name] - value) / abs(value)
        for name, value in baseline.items()
    ]
    return 100 * sum(changes) / len(changes)


@lru_cache(maxsize=256)
def student_t(df: int, level: float = 0.975) -> float:
    """Quantile of Student's t distribution with `df` degrees of freedom at `level`.

    Computed by bisection on the distribution function `1/2 + c int_0^a cos^(df-1)`, `a = atan(t/sqrt(df))`,
    with Gauss-Legendre quadrature: ten digits, without a statistics package.
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
