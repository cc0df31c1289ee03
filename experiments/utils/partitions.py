"""Train the groups of a partition of the tasks, one model each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from .comparison import Values, mean_of
from .rows import Results, Rows, mean_seconds, single, values

Partition = tuple[tuple[str, ...], ...]
SPLITS = ("validation", "test")


class Trained(NamedTuple):
    """The models of a partition.

    Attributes:
        values: for each split and seed, the measures of all tasks.
        facts: groups, selected learning rates, steps, epochs, parameters, training seconds.
    """

    values: dict[str, dict[int, Values]]
    facts: dict[str, Any]


class Partitions:
    """Trains partitions; a group that is in two of them is trained once.

    The weights of a model of several tasks are selected by `delta_m` relative to the single tasks, as those
    of the methods of `multitask` are.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows, self.tasks = rows, tuple(rows.measures)
        self.trained: dict[tuple[str, ...], tuple[Results, dict[str, Any]]] = {}
        # The actual values are known after the single tasks.
        self.reference = dict.fromkeys(rows.higher, 1.0)

    def check(self) -> None:
        """Build every single task and the joint model, without training; raises as `Rows.check`."""
        groups = [*((task,) for task in self.tasks), self.tasks]
        self.rows.check({self._name(group): self._changes(group) for group in groups})

    def set_reference(self, apart: Trained) -> None:
        """Select weights relative to these single tasks."""
        self.reference = mean_of(list(apart.values["validation"].values()))

    def __call__(self, partition: Partition) -> Trained:
        """Tune and train the model of every group with every seed; raises as `Rows.__call__`."""
        for group in partition:
            if group not in self.trained:
                self.trained[group] = self.rows(self._name(group), self._changes(group))
        runs = [self.trained[group][0] for group in partition]
        lengths = [self.rows.length(results) for results in runs]
        first = self.rows.cfg.seeds[0]
        merged: dict[str, dict[int, Values]] = {
            split: {seed: {} for seed in self.rows.cfg.seeds} for split in SPLITS
        }
        for group, results in zip(partition, runs):
            measures = [self.rows.measures[task] for task in group]
            for split in SPLITS:
                for seed, entries in values(results, split, measures).items():
                    merged[split][seed] |= entries
        facts = {
            "models": len(partition),
            "groups": [list(group) for group in partition],
            "tuned": {", ".join(group): self.trained[group][1] for group in partition},
            "steps": max(length["steps"] for length in lengths),
            "epochs": lengths[0]["epochs"],
            "parameters": sum(results[first]["parameters"] for results in runs),
            "seconds": sum(mean_seconds(results) for results in runs),
        }
        return Trained(merged, facts)

    def mean(self, trained: Sequence[Trained]) -> Trained:
        """The mean over several partitions, for each seed."""
        merged = {
            split: {
                seed: mean_of([each.values[split][seed] for each in trained])
                for seed in self.rows.cfg.seeds
            }
            for split in SPLITS
        }
        facts = {
            **trained[0].facts,
            "groups": [each.facts["groups"] for each in trained],
            "tuned": [each.facts["tuned"] for each in trained],
            **{
                name: sum(each.facts[name] for each in trained) / len(trained)
                for name in ("parameters", "seconds")
            },
        }
        return Trained(merged, facts)

    def config(self, group: tuple[str, ...], seed: int) -> DictConfig:
        """The config of a training of this group, which is trained, with its selected learning rate."""
        return self.rows.config(self._name(group), self._changes(group), self.trained[group][1], seed)

    def _changes(self, group: tuple[str, ...]) -> DictConfig:
        measures = [self.rows.measures[task] for task in group]
        if len(group) == 1:
            return single(group[0], measures[0])
        changes: Mapping[str, Any] = {
            "task": {"tasks": list(group)},
            "metric": "delta_m",
            "reference": {measure: self.reference[measure] for measure in measures},
            "tasks_per_step": len(group),
        }
        return OmegaConf.create(dict(changes))

    def _name(self, group: tuple[str, ...]) -> str:
        """The folder of a group; names of many tasks would be too long for a file system."""
        if len(group) == 1:
            return f"single_{group[0]}"
        if len(group) == len(self.tasks):
            return "together"
        return f"group_{'-'.join(str(self.tasks.index(task)) for task in group)}"


def random_partitions(tasks: Sequence[str], like: Partition, count: int, seed: int) -> list[Partition]:
    """Up to `count` different random partitions into groups of the same sizes, other than `like` itself.

    There are fewer if no more exist, and none if every task is alone or all are in one group. The tasks of
    a group are in the order of `tasks`.

    >>> random_partitions(("a", "b", "c"), (("a", "b"), ("c",)), 5, seed=0)
    [(('b', 'c'), ('a',)), (('a', 'c'), ('b',))]
    """
    rng = torch.Generator().manual_seed(seed)
    known, result = {frozenset(map(frozenset, like))}, []
    for _ in range(100 * count):
        order, partition = torch.randperm(len(tasks), generator=rng).tolist(), []
        for group in like:
            members, order = sorted(order[: len(group)]), order[len(group) :]
            partition.append(tuple(tasks[i] for i in members))
        key = frozenset(map(frozenset, partition))
        if key not in known and len(result) < count:
            known.add(key)
            result.append(tuple(partition))
    return result
