"""What flows through the house: batches, and episodes made of two of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Tree = Any  # a tensor, or tensors in any nesting of tuples, lists and dicts


class Batch(NamedTuple):
    """Inputs and targets of one task, or of T alike tasks with a leading task axis.

    `x` is what the model is called with: a tensor, a tuple (positional arguments) or a dict
    (keyword arguments). `y` is what the loss gets beside the model's output. A plain tuple `(x, y)`
    serves wherever a `Batch` does.

    >>> import torch
    >>> Batch(torch.zeros(10, 1), torch.zeros(10, 1)).x.shape
    torch.Size([10, 1])
    """

    x: Tree
    y: Tree


@dataclass(frozen=True)
class Episode:
    """One meta-batch of T alike tasks, or the data of one named task.

    **Alike tasks.** Every tensor has a leading task axis: `support.x` is `[T, S, ...]`, `query.x` is
    `[T, Q, ...]`. `task` holds what identifies the tasks: `[T]` ids, or for few-shot classification
    the `[T, N]` class ids behind the labels `0 .. N-1`.

    **One named task** (a value in a dict of episodes): no task axis; `task` is not needed, the key of
    the dict names it.

    `support` is None where nothing is adapted. `ways` is the number of classes N where the maker of
    the episode knows it; otherwise it is read from the labels.

    >>> import torch
    >>> Episode(None, Batch(torch.zeros(4, 10, 1), torch.zeros(4, 10, 1))).num_tasks
    4
    """

    support: Batch | None
    query: Batch
    task: Tensor | None = None
    ways: int | None = None

    @property
    def num_tasks(self) -> int:
        """Length T of the leading task axis."""
        return int(_filled(self.query)[0].shape[0])

    def __getitem__(self, index: Any) -> Episode:
        """The tasks that `index` names: a slice or an index tensor keeps the task axis, an int drops it."""
        return self.map(lambda leaf: leaf[index])

    def map(self, function: Any) -> Episode:
        """A copy with `function` applied to every tensor."""
        support, query, task = tree_map(
            lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf,
            (self.support, self.query, self.task),
        )
        return replace(self, support=support, query=query, task=task)

    def to(self, *args: Any, **kwargs: Any) -> Episode:
        """A copy on another device, as `Tensor.to(device)` makes one."""
        return self.map(lambda leaf: leaf.to(*args, **kwargs))

    def check(self, *, named: str | None = None) -> None:
        """Refuse an episode whose tensors do not fit together.

        `named` is the task's name where the episode stands in a dict and has no task axis.

        Raises:
            ValueError: support and query on different devices, or of shapes that do not fit.
        """
        where = f"task {named!r}: " if named is not None else ""
        parts = {"query": self.query}
        if self.support is not None:
            parts["support"] = self.support
        axes = 1 if named is not None else 2
        for name, batch in parts.items():
            _check_batch(where + name, batch, axes)
        if self.support is not None:
            _check_pair(where, self.support, self.query, axes)
        if named is None and self.task is not None and self.task.shape[:1] != (self.num_tasks,):
            raise ValueError(
                f"task has shape {list(self.task.shape)}, but the query holds {self.num_tasks} tasks;"
                " its first axis must be the task axis."
            )


def _filled(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, which has at least one."""
    tensors = _tensors((batch[0], batch[1]))
    if not tensors:
        raise ValueError("a Batch needs at least one tensor in x or y; this one has none.")
    return tensors


def _tensors(tree: Tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _check_batch(name: str, batch: Batch, axes: int) -> None:
    """Every tensor of one batch has the same leading axes: tasks (when `axes` is 2) and examples."""
    tensors = _filled(batch)
    lead = tensors[0].shape[:axes]
    for tensor in tensors:
        if tensor.shape[:axes] != lead or tensor.dim() < axes:
            kind = "[T, examples, ...]" if axes == 2 else "[examples, ...]"
            shapes = ", ".join(str(list(t.shape)) for t in tensors)
            raise ValueError(
                f"{name}: x and y do not fit together: shapes {shapes}; all must begin with the same"
                f" {kind}."
            )


def _check_pair(where: str, support: Batch, query: Batch, axes: int) -> None:
    """Support and query hold the same tasks, the same kind of inputs, on the same device."""
    first, second = _tensors(support[0]), _tensors(query[0])
    devices = {str(t.device) for t in _tensors(support)} | {str(t.device) for t in _tensors(query)}
    if len(devices) > 1:
        raise ValueError(
            f"{where}support is on {_filled(support)[0].device}, query on {_filled(query)[0].device}"
            f" (devices found: {', '.join(sorted(devices))}); move both with episode.to(device)."
        )
    for a, b in zip(first, second):
        tasks_differ = axes == 2 and a.shape[0] != b.shape[0]
        if tasks_differ or a.shape[axes:] != b.shape[axes:] or a.dtype != b.dtype:
            raise ValueError(
                f"{where}support.x has shape {list(a.shape)} ({a.dtype}), query.x has shape"
                f" {list(b.shape)} ({b.dtype}); only the number of examples may differ."
            )
