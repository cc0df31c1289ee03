"""A meta-batch of tasks of several shapes, as groups of tasks of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .episode import Batch, Episode


@dataclass(frozen=True)
class MetaBatch:
    """T tasks in groups. The tasks of a group have equal shapes and form one `Episode`, which engines run.

    Attributes:
        groups: the episodes. A meta-batch of homogeneous tasks is one group.
        positions: for each group the positions of its tasks in the meta-batch, ascending.
    """

    groups: tuple[Episode, ...]
    positions: tuple[Sequence[int], ...]

    @classmethod
    def of(cls, episodes: Episode | Sequence[Episode]) -> MetaBatch:
        """The meta-batch of the tasks of one episode, or of several in their order.

        >>> few, many = (Batch(torch.zeros(1, n, 2), torch.zeros(1, n)) for n in (5, 20))
        >>> MetaBatch.of([Episode(few, few), Episode(many, few), Episode(few, few)]).positions
        ([0, 2], [1])
        """
        if isinstance(episodes, Episode):
            return cls((episodes,), (range(episodes.num_tasks),))
        members: dict[Any, list[Episode]] = {}
        positions: dict[Any, list[int]] = {}
        total = 0
        for episode in episodes:
            shape, count = _shape(episode), episode.num_tasks
            members.setdefault(shape, []).append(episode)
            positions.setdefault(shape, []).extend(range(total, total + count))
            total += count
        return cls(tuple(map(_concatenate, members.values())), tuple(positions.values()))

    def __getitem__(self, position: int) -> Episode:
        """The task at a position, without a task axis."""
        for episode, positions in zip(self.groups, self.positions):
            if position in positions:
                return episode[positions.index(position)]
        raise IndexError(position)


def _shape(episode: Episode) -> Any:
    """A key that is equal for tasks that can run together: shapes, types, devices and number of ways."""
    leaves, structure = tree_flatten((episode.support, episode.query, episode.task))
    kinds = [
        (leaf.shape[1:], leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf))
        for leaf in leaves
    ]
    return episode.ways, repr(structure), tuple(kinds)


def _concatenate(episodes: Sequence[Episode]) -> Episode:
    """One episode with the tasks of all, which have equal shapes."""
    if len(episodes) == 1:
        return episodes[0]
    flat = [tree_flatten((episode.support, episode.query, episode.task)) for episode in episodes]
    columns = zip(*(leaves for leaves, _ in flat))
    leaves = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    support, query, task = tree_unflatten(leaves, flat[0][1])
    return Episode(support, Batch(*query), task, episodes[0].ways)
