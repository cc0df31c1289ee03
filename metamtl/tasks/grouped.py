"""Tasks that each lie within one group: an alphabet, a patient, a range of amplitudes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..episode import Episode


class GroupedTasks:
    """Draws from several families of alike tasks, as evenly as can be.

    Of T tasks over G groups every group has `T // G`; the rest go to different groups, by lot. Tasks stand
    in the order of the groups, so with T = G, row t of the gradients is that of group t at every step,
    which an aggregator needs that remembers something of each task.

    Args:
        groups: families whose tasks have the same shapes, loss and metrics, by the group's name.

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
            raise ValueError("Grouped needs at least one group of tasks; found none.")
        self.groups = dict(groups)
        first = next(iter(self.groups.values()))
        self.loss, self.metrics = first.loss, first.metrics

    @property
    def ids(self) -> list[int]:
        """What `Episode.task` may hold, of all the groups."""
        return sorted({one for family in self.groups.values() for one in family.ids})

    def counts(self, num_tasks: int, rng: torch.Generator) -> list[int]:
        """How many of `num_tasks` tasks each group has."""
        whole, rest = divmod(num_tasks, len(self.groups))
        counts = torch.full((len(self.groups),), whole, device="cpu")
        counts[torch.randperm(len(self.groups), generator=rng, device="cpu")[:rest]] += 1
        return counts.tolist()

    def sample(self, num_tasks: int, rng: torch.Generator) -> Episode:
        """Draw `num_tasks` tasks with the random numbers of `rng` (a generator on the CPU).

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
    """Check that the episodes of all groups hold tensors of one shape and type."""
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
