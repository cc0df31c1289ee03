"""What must be the same in the processes of a group, and what is said if it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Agreement = dict[str, Any]  # what must be the same in all processes, by its description


def concatenated(task: str, leaves: Sequence[Any]) -> Any:
    if not isinstance(leaves[0], Tensor):
        return leaves[0]
    if len({leaf.shape[1:] for leaf in leaves}) > 1:
        raise ValueError(
            f"the outputs or labels of task {task!r} have shapes {[list(leaf.shape) for leaf in leaves]} in"
            " the processes; only the first axis, that of examples, may differ: pad them to one length."
        )
    return torch.cat([*leaves])


def difference(agreements: Sequence[Agreement]) -> str:
    """Describe the first entry that differs between processes."""
    first = agreements[0]
    key, rank = next(
        (key, rank)
        for key in first
        for rank, other in enumerate(agreements)
        if other.get(key) != first[key]
    )
    values: list[Any] = [agreement.get(key) for agreement in agreements]
    remedy = "All processes need the same."
    if key == "tasks":
        every = sorted(set().union(*values))
        missing = {rank: [task for task in every if task not in value] for rank, value in enumerate(values)}
        words = [f"process {rank} has no {', '.join(names)}" for rank, names in missing.items() if names]
        if words:
            return (
                f"the processes have different tasks: {'; '.join(words)}. Every process needs every task;"
                " one without examples of a task passes an episode whose tensors have length 0."
            )
        remedy = "All processes need the same order."
    return f"the {key} differ: process 0 has {first[key]}, process {rank} has {values[rank]}. {remedy}"
