"""A mean over tasks, and how far it can be trusted."""

from __future__ import annotations

import math
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
