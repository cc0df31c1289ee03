"""Tasks that lose when they are trained together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..estimate import Estimate
from .result import Result, bars


@dataclass(frozen=True)
class NegativeTransfer(Result):
    """The gain of every task from joint training, with its confidence interval.

    Attributes:
        gains: for each task the paired difference; above 0, it is better together.
    """

    gains: dict[str, Estimate]

    @property
    def losing(self) -> tuple[str, ...]:
        """The tasks whose 95 % interval lies below 0."""
        return tuple(task for task, gain in self.gains.items() if gain.mean + gain.ci95 < 0)

    @property
    def winning(self) -> tuple[str, ...]:
        """The tasks whose 95 % interval lies above 0."""
        return tuple(task for task, gain in self.gains.items() if gain.mean - gain.ci95 > 0)

    def scalars(self) -> dict[str, float]:
        return {task: gain.mean for task, gain in self.gains.items()}

    def plot(self, ax: Any = None) -> Any:
        means, errors = zip(*((gain.mean, gain.ci95) for gain in self.gains.values()))
        return bars(ax, tuple(self.gains), means, "gain from joint training", errors)


def negative_transfer(
    together: Mapping[str, Estimate],
    alone: Mapping[str, Estimate],
    higher_is_better: bool | Mapping[str, bool],
) -> NegativeTransfer:
    """Compare joint training with one model per task, by paired differences.

    Pass `Estimate`s over the same tasks, test examples or, best, over seeds of the whole training: an
    interval over examples of two single trainings does not include the noise of training. One interval in
    twenty is wrong, so with many tasks some are by chance.

    Args:
        together: the measure of each task in the joint model, such as results of `evaluate`.
        alone: the same measures of models trained on one task each.
        higher_is_better: the direction of the measures, for all or by task.

    Raises:
        ValueError: the tasks differ, there is none, an estimate has one value only, the numbers of values
            differ, or a direction is missing.

    >>> import torch
    >>> one, other = (Estimate.of(torch.tensor(v)) for v in ([0.7, 0.71, 0.72], [0.8, 0.82, 0.81]))
    >>> result = negative_transfer({"a": one, "b": other}, {"a": other, "b": one}, higher_is_better=True)
    >>> result.losing, result.winning
    (('a',), ('b',))
    """
    if together.keys() != alone.keys() or not together:
        raise ValueError(
            f"negative_transfer compares the same tasks; together has {sorted(together)}, alone"
            f" {sorted(alone)}."
        )
    directions = higher_is_better
    if not isinstance(directions, Mapping):
        directions = dict.fromkeys(together, directions)
    if missing := [task for task in together if not isinstance(directions.get(task), bool)]:
        raise ValueError(f"higher_is_better has no True or False for {missing}; add {missing[0]!r}.")
    gains = {}
    for task, estimate in together.items():
        if estimate.n < 2:
            raise ValueError(
                f"the estimate of task {task!r} has one value, which has no interval; pass the values of"
                " several seeds, tasks or examples, Estimate.of(values)."
            )
        gain = estimate.difference(alone[task])
        gains[task] = gain if directions[task] else alone[task].difference(estimate)
    return NegativeTransfer(gains)
