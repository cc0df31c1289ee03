"""Estimates of the rows of a table of named tasks, and their changes from single tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from metamtl import Estimate, delta_m

from ..tables.report import sign

Values = dict[str, float]  # by measure


class Comparison:
    """The estimates of a row, and its changes from the single tasks of the same seeds.

    Each seed is compared with the single tasks of that seed: the interval includes the noise of both.
    `direction` maps each measure to whether higher values are better, `alone` each seed to the values of
    the single tasks on the test set.
    """

    def __init__(self, direction: Mapping[str, bool], alone: Mapping[int, Values]) -> None:
        self.direction, self.alone = direction, alone
        self.scale = mean_of(list(alone.values()))
        self.first: list[float] | None = None  # delta_m of the first method, by seed

    def __call__(self, test: Mapping[int, Values], *, among_methods: bool = False) -> dict[str, Any]:
        """Estimates on the test set, `delta_m`, the sign of each measure, and the change from the first."""
        changes = self.changes(test)
        row = {
            "test": self.estimates(test),
            "mean": self.mean(test),
            "delta_m": estimate(changes),
            "signs": {
                m: sign(estimate([(test[s][m] - self.alone[s][m]) * (1 if up else -1) for s in test]))
                for m, up in self.direction.items()
            },
        }
        if among_methods:
            self.first = self.first or changes
            row["against_first"] = estimate([a - b for a, b in zip(changes, self.first)])
        return row

    def changes(self, test: Mapping[int, Values]) -> list[float]:
        """`delta_m` of every seed relative to the single tasks of that seed, in percent of their mean."""
        return [
            delta_m(values, self.scale, self.direction)
            - delta_m(self.alone[seed], self.scale, self.direction)
            for seed, values in test.items()
        ]

    def estimates(self, by_seed: Mapping[int, Values]) -> dict[str, Any]:
        """The estimate of every measure."""
        return {m: estimate([values[m] for values in by_seed.values()]) for m in self.direction}

    def mean(self, by_seed: Mapping[int, Values]) -> dict[str, Any] | None:
        """The mean over the tasks; None if their measures differ."""
        if len({m.rpartition("/")[2] for m in self.direction}) > 1:
            return None
        return estimate(
            [sum(values[m] for m in self.direction) / len(self.direction) for values in by_seed.values()]
        )


def estimate(values: list[float]) -> dict[str, float]:
    """Mean and 95 % interval over seeds."""
    result = Estimate.of(torch.tensor(values, dtype=torch.float64))
    return {"mean": result.mean, "ci95": result.ci95}


def mean_of(of_seeds: list[Values]) -> Values:
    """The mean of every measure over the seeds."""
    return {name: sum(values[name] for values in of_seeds) / len(of_seeds) for name in of_seeds[0]}
