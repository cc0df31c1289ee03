"""Hierarchical sharing: a bottom for all tasks, a middle for each group, a head for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .named import NamedTasks, Outputs, check_names, distinct


class Hierarchical(NamedTasks):
    """A `bottom` for all tasks, `middles.<group>` for the tasks of a group, and `heads.<task>`.

    A task with its own middle is a group of one.

    Args:
        bottom: maps the inputs to the input of the middles.
        middles: for each group its middle, which returns `[..., features]`.
        groups: for each group its tasks; every task must be in exactly one group.
        features: output width of the middles.
        outputs: for each task the width of its linear head, or a module to use as its head.

    Raises:
        ValueError: a task is not in exactly one group, or a group does not have one middle.

    >>> import torch
    >>> middles = {"tagging": nn.Linear(6, 8), "scoring": nn.Linear(6, 8)}
    >>> groups = {"tagging": ["ner", "pos"], "scoring": ["tone"]}
    >>> model = Hierarchical(nn.Linear(4, 6), middles, groups, 8, {"ner": 5, "pos": 9, "tone": 1})
    >>> model(torch.zeros(2, 7, 4), task="pos").shape
    torch.Size([2, 7, 9])
    """

    def __init__(
        self,
        bottom: nn.Module,
        middles: Mapping[str, nn.Module],
        groups: Mapping[str, Sequence[str]],
        features: int,
        outputs: Outputs,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        check_names(kind, outputs)
        check_names(kind, groups)
        if set(groups) != set(middles):
            raise ValueError(
                f"{kind}: groups are {sorted(groups)}, but there are middles for {sorted(middles)};"
                " give each group one middle."
            )
        members = [task for tasks in groups.values() for task in tasks]
        invalid = sorted(
            {task for task in members if members.count(task) > 1 or task not in outputs}
            | (set(outputs) - set(members))
        )
        if invalid:
            raise ValueError(
                f"{kind}: tasks {invalid} are not in exactly one group, or have no head; groups are"
                f" { ({group: list(tasks) for group, tasks in groups.items()}) }, heads {list(outputs)}."
            )
        distinct([bottom, *middles.values()], f"the bottom and the middles of {kind}")
        self.bottom = bottom
        self.middles = nn.ModuleDict(dict(middles))
        self.group = {task: group for group, tasks in groups.items() for task in tasks}
        self.add_heads(outputs, features)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        bottom = self.bottom(*inputs, **keywords)
        groups = dict.fromkeys(self.group[name] for name in task_names)
        features = {group: self.middles[group](bottom) for group in groups}
        return {name: self.head(name, features[self.group[name]]) for name in task_names}
