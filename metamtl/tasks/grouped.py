"""Tasks from several groups, such as alphabets or ranges of amplitudes; each task uses one group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..episode import Episode


class GroupedTasks:
    """Homogeneous tasks drawn from several groups, as evenly as possible.

    Of T tasks from G groups, every group contributes `T // G`; the remaining tasks come from different
    random groups. Tasks are in the order of the groups. With T = G, row t of the Jacobian therefore belongs
    to group t at every step, as aggregators with a state per task require.

    Args:
        groups: name of the group -> its tasks. All groups have the same shapes, loss and metrics.

    Raises:
        ValueError: no group.

    >>> from metamtl.tasks import Sinusoid
    >>> low, high = Sinusoid(amplitude=(0.1, 0.5)), Sinusoid(amplitude=(5.0, 50.0))
    >>> waves = GroupedTasks({"low": low, "high": high})
    >>> waves.sample(4, torch.Generator().manual_seed(0)).query.y.abs().amax((1, 2)) > 1
    tensor([False, False,  True,  True])
    """

    def __init__(self, groups: Mapping[str, Any]) -> None:
        if not groups:
            raise ValueError("GroupedTasks needs at least one group of tasks; found none.")
        self.groups = dict(groups)
        first = next(iter(self.groups.values()))
        self.loss, self.metrics = first.loss, first.metrics

    @property
    def ids(self) -> list[int]:
        """Possible values of `Episode.task`, of all groups."""
        return sorted({task_id for family in self.groups.values() for task_id in family.ids})

    def counts(self, num_tasks: int, rng: torch.Generator) -> list[int]:
        """Draw how many of `num_tasks` tasks come from each group."""
        quotient, rest = divmod(num_tasks, len(self.groups))
        counts = torch.full((len(self.groups),), quotient, device="cpu")
        counts[torch.randperm(len(self.groups), generator=rng, device="cpu")[:rest]] += 1
        return counts.tolist()

    def sample(self, num_tasks: int, rng: torch.Generator) -> Episode:
        """Draw `num_tasks` tasks using `rng` (a generator on the CPU).

        Raises:
            ValueError: `num_tasks` below 1; groups whose tasks differ in shapes or types.
        """
        if num_tasks < 1:
            raise ValueError(f"num_tasks={num_tasks} must be at least 1.")
        counts = self.counts(num_tasks, rng)
        parts = [family.sample(n, rng) for family, n in zip(self.groups.values(), counts) if n]
        _check_alike(dict(zip((name for name, n in zip(self.groups, counts) if n), parts)))
        support, query, task = tree_map(
            lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0],
            *[(part.support, part.query, part.task) for part in parts],
        )
        return replace(parts[0], support=support, query=query, task=task)


def _check_alike(parts: Mapping[str, Episode]) -> None:
    """Check that the tensors of all groups have the same shapes and dtypes."""
    kinds = {
        name: [
            f"{list(leaf.shape[1:])} {leaf.dtype}"
            for leaf in tree_leaves((part.support, part.query, part.task))
            if isinstance(leaf, Tensor)
        ]
        for name, part in parts.items()
    }
    first, *others = kinds
    for name in others:
        if kinds[name] != kinds[first]:
            raise ValueError(
                f"the tasks of group {first!r} hold {', '.join(kinds[first])}, those of group {name!r}"
                f" {', '.join(kinds[name])}; all groups need the same shapes and types."
            )
