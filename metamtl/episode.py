"""Batches and episodes. An episode consists of a support batch and a query batch."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, SupportsIndex

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .functional.inputs import Inputs

Tree = Any  # a tensor, or tensors in nested tuples, lists and mappings


class Batch(NamedTuple):
    """Inputs and targets of one task, or of T homogeneous tasks with a leading task axis.

    `x` holds the arguments of the model: a tensor, a tuple (positional arguments), a mapping (keyword
    arguments) or `Inputs` (both). Besides tensors it may contain strings, numbers and None. `y` is the
    second argument of the loss, after the model's output. A plain tuple `(x, y)` is accepted in place of a
    `Batch`.

    >>> import torch
    >>> Batch(torch.zeros(10, 1), torch.zeros(10, 1)).x.shape
    torch.Size([10, 1])
    """

    x: Tree
    y: Tree


@dataclass(frozen=True)
class Episode:
    """A meta-batch of T homogeneous tasks, or the data of one named task.

    **Homogeneous tasks.** Every tensor has a leading task axis: `support.x` is `[T, S, ...]`, `query.x`
    is `[T, Q, ...]`. `task` identifies the tasks: ids `[T]`, or for few-shot classification `[T, N]`, the
    ids of the classes that the labels `0 .. N-1` stand for.

    **One named task** (a value in a dict of episodes): no task axis; `task` is not needed, because the key
    of the dict is the name.

    Some tensors of `x` may have no example axis, such as the edges `[T, 2, E]` of a graph or one number per
    task `[T]`. The targets and at least one tensor of `x` must have the same number of examples. On
    construction, a plain tuple `(x, y)` is converted to a `Batch`, and a mapping that is not a dict (the
    `BatchEncoding` of a tokenizer) to a dict.

    Args:
        support: the examples to adapt to; None if nothing is adapted.
        query: the examples on which the adapted parameters are evaluated. It may have no example,
            `(x[:, :0], y[:, :0])`, if the objective reads only parameters, as that of Reptile does.
        task: ids, or None.
        ways: number of classes N; if None, it is inferred from the labels.

    Raises:
        TypeError: a part is not a pair `(x, y)`, or contains NumPy arrays.
        ValueError: `ways` is not a positive integer.

    >>> import torch
    >>> Episode(None, Batch(torch.zeros(4, 10, 1), torch.zeros(4, 10, 1))).num_tasks
    4
    """

    support: Batch | None
    query: Batch
    task: Tensor | None = None
    ways: int | None = None

    def __post_init__(self) -> None:
        if self.support is not None:
            object.__setattr__(self, "support", _batch("support", self.support))
        object.__setattr__(self, "query", _batch("query", self.query))
        if self.ways is not None and (not isinstance(self.ways, SupportsIndex) or int(self.ways) < 1):
            raise ValueError(
                f"ways={self.ways!r} is no number of classes; pass an int of at least 1, or None."
            )

    @property
    def num_tasks(self) -> int:
        """Length T of the leading task axis."""
        return int(_filled(self.query)[0].shape[0])

    def __getitem__(self, index: Any) -> Episode:
        """The tasks at `index`; a slice or an index tensor keeps the task axis, an int removes it."""
        return self.map(lambda leaf: leaf[index])

    def map(self, function: Any) -> Episode:
        """A copy with `function` applied to every tensor."""
        support, query, task = tree_map(
            lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf,
            (self.support, self.query, self.task),
        )
        return replace(self, support=support, query=query, task=task)

    def to(self, *args: Any, **kwargs: Any) -> Episode:
        """A copy on another device, with the arguments of `Tensor.to`."""
        return self.map(lambda leaf: leaf.to(*args, **kwargs))

    def check(self, *, named: str | None = None) -> None:
        """Check that the tensors of the episode are consistent.

        `named` is the name of the task if the episode is a value of a dict and has no task axis.

        Raises:
            ValueError: support and query are on different devices, or shapes are inconsistent.
            TypeError: `task` is not a tensor.
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
        if named is not None or self.task is None:
            return
        if not isinstance(self.task, Tensor):
            raise TypeError(f"task is a {type(self.task).__name__}; pass a tensor: torch.as_tensor(task).")
        if self.task.shape[:1] != (self.num_tasks,):
            raise ValueError(
                f"task has shape {list(self.task.shape)}, but the query has {self.num_tasks} tasks;"
                " its first axis must be the task axis."
            )


def as_episode(value: Any, name: str | None = None) -> Episode:
    """Convert `value` to an Episode; it is an Episode or a pair `(support, query)` of pairs `(x, y)`.

    Args:
        value: the object that was passed as an episode.
        name: name of the task for error messages.

    Raises:
        TypeError: `value` is anything else, such as a single Batch, a list or a DataLoader.

    >>> import torch
    >>> x, y = torch.zeros(4, 5, 2), torch.zeros(4, 5, 1)
    >>> as_episode(((x, y), (x, y))).support.x.shape
    torch.Size([4, 5, 2])
    """
    if isinstance(value, Episode):
        return value
    if type(value) is tuple and len(value) == 2 and all(_is_pair(part) or part is None for part in value):
        return Episode(*value)
    where = "" if name is None else f" for task {name!r}"
    kind = "a Batch" if isinstance(value, Batch) else f"a {type(value).__name__}"
    remedy = "Episode(support=(x, y), query=(x, y)), with support=None if nothing is adapted"
    if isinstance(value, Batch):
        remedy = "Episode(None, batch) if nothing is adapted, else Episode(support, query)"
    elif hasattr(value, "__iter__") and not isinstance(value, (str, tuple, Mapping, Tensor)):
        remedy += "; iterate over it yourself and pass one episode in each call"
    raise TypeError(f"expected an Episode{where}, got {kind}; pass {remedy}.")


def _is_pair(part: Any) -> bool:
    return isinstance(part, tuple) and len(part) == 2 and not isinstance(part, Inputs)


def _batch(name: str, part: Any) -> Batch:
    """Convert a part of an episode to a Batch; `tree_map` supports all its containers."""
    if part is None:
        raise TypeError(
            f"{name} is None; for tasks without queries pass an empty batch, (x[:, :0], y[:, :0])."
        )
    if not _is_pair(part):
        raise TypeError(f"{name} is a {type(part).__name__}; pass Batch(x, y) or a tuple (x, y).")
    x, y = (_plain(tree, f"{name}.{field}") for field, tree in zip("xy", part))
    numbers = y if isinstance(y, list) else []
    if numbers and all(isinstance(number, (int, float)) for number in numbers):
        raise TypeError(f"{name}.y is a list of numbers; pass a tensor: torch.tensor(y).")
    return part if isinstance(part, Batch) and x is part[0] and y is part[1] else Batch(x, y)


def _plain(tree: Tree, name: str) -> Tree:
    """`tree` with every mapping converted to a dict; the same object if there is none to convert."""
    if isinstance(tree, Tensor):
        return tree
    if hasattr(tree, "__array__") and getattr(tree, "ndim", 0) > 0:
        raise TypeError(
            f"{name} holds a {type(tree).__module__}.{type(tree).__name__} of shape {list(tree.shape)},"
            " which has no device and no gradient; convert it with torch.from_numpy."
        )
    if isinstance(tree, Inputs) and not (isinstance(tree.args, tuple) and isinstance(tree.kwargs, Mapping)):
        raise TypeError(
            f"{name} is Inputs of a {type(tree.args).__name__} and a {type(tree.kwargs).__name__}; pass a"
            " tuple of positional arguments and a mapping of keyword arguments."
        )
    if isinstance(tree, UserDict):
        tree = tree.data  # always the same object, so that tasks that share an input still share it
    if isinstance(tree, Mapping):
        parts = {key: _plain(value, name) for key, value in tree.items()}
        same = type(tree) in (dict, OrderedDict, defaultdict)
        return tree if same and all(parts[key] is tree[key] for key in parts) else parts
    if isinstance(tree, (tuple, list)):
        items = [_plain(value, name) for value in tree]
        if all(item is value for item, value in zip(items, tree)):
            return tree
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def _filled(batch: Batch) -> list[Tensor]:
    """The tensors of a batch; raises ValueError if there are none."""
    tensors = _tensors((batch[0], batch[1]))
    if not tensors:
        raise ValueError("a Batch needs at least one tensor in x or y; this one has none.")
    return tensors


def _tensors(tree: Tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _check_batch(name: str, batch: Batch, axes: int) -> None:
    """Check the task axis of all tensors (if `axes` is 2) and the number of examples in x and y."""
    tensors, x, y = _filled(batch), _tensors(batch[0]), _tensors(batch[1])
    shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
    if axes == 2 and any(t.dim() == 0 or t.shape[0] != tensors[0].shape[0] for t in tensors):
        raise ValueError(
            f"{name}: x and y do not fit together: shapes {shapes}; all must begin with the same task axis,"
            " [T, examples, ...] or [T, ...]."
        )
    if not x or not y:
        return
    counts = {tensor.shape[axes - 1] for tensor in y if tensor.dim() >= axes}
    kind = "[T, examples, ...]" if axes == 2 else "[examples, ...]"
    if len(counts) > 1 or (len(x) == 1 and not counts):
        raise ValueError(
            f"{name}: x and y do not fit together: shapes {shapes}; the targets must begin with the same"
            f" {kind} as x."
        )
    if counts and not any(_has_examples(tensor, counts, axes) for tensor in x):
        raise ValueError(
            f"{name}: x and y do not fit together: shapes {shapes}; y and at least one tensor of x must"
            f" begin with the same {kind}."
        )


def _has_examples(tensor: Tensor, counts: set[int], axes: int) -> bool:
    return tensor.dim() >= axes and tensor.shape[axes - 1] in counts


def _check_pair(where: str, support: Batch, query: Batch, axes: int) -> None:
    """Check that support and query have the same tasks, kinds of inputs and device."""
    first, second = _tensors(support[0]), _tensors(query[0])
    devices = {str(t.device) for t in _tensors(support)} | {str(t.device) for t in _tensors(query)}
    if len(devices) > 1:
        raise ValueError(
            f"{where}support is on {_filled(support)[0].device}, query on {_filled(query)[0].device}"
            f" (devices: {', '.join(sorted(devices))}); move both with episode.to(device)."
        )
    if _arguments(support[0]) != _arguments(query[0]):
        raise ValueError(
            f"{where}support.x has {_arguments(support[0])}, query.x has {_arguments(query[0])}; the"
            " model is called with the same arguments for both."
        )
    single = len(first) == 1
    counts = [
        {tensor.shape[axes - 1] for tensor in _tensors(batch[1]) if tensor.dim() >= axes}
        for batch in (support, query)
    ]
    for a, b in zip(first, second):
        examples = single or (_has_examples(a, counts[0], axes) and _has_examples(b, counts[1], axes))
        shapes_differ = a.shape[axes:] != b.shape[axes:] if examples else a.dim() != b.dim()
        tasks_differ = axes == 2 and a.shape[0] != b.shape[0]
        if tasks_differ or shapes_differ or a.dtype != b.dtype:
            raise ValueError(
                f"{where}support.x has shape {list(a.shape)} ({a.dtype}), query.x has shape"
                f" {list(b.shape)} ({b.dtype}); only the number of examples may differ."
            )


def _arguments(x: Tree) -> str:
    """Describe the arguments of the model in `x` for error messages."""
    if isinstance(x, Inputs):
        return f"{_arguments(x.args)}, {_arguments(x.kwargs)}"
    if isinstance(x, Mapping):
        return f"the keywords {sorted(map(str, x))}"
    return f"{len(x)} positional arguments" if isinstance(x, tuple) else "one argument"
