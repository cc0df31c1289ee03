"""Named tasks on one input: every example has a label for each task, or lacks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..episode import Batch, Episode
from ..functional.labels import has_label
from ..losses import Loss
from ..metrics import Metric
from .arrays import as_tensor, widened

Maker = Callable[[Tensor], Tensor]  # from positions [n] to what stands there


class LabeledTasks:
    """Batches of examples with one label for each task; all tasks of a batch share their input.

    A label may be missing: NaN if labels are floats, `losses.MISSING` (-100) if they are integers. The loss
    of the task must leave it out (`losses.mean_over_labeled`; torch's cross-entropy does). A task without a
    labeled example in a batch is not in the dict of that batch.

    Args:
        inputs: what the model is called with, of all M examples: a tensor, array or list of rows, or
            several of them in a tuple or dict; or a function from positions `[n]` to it, for inputs that
            are computed on demand.
        labels: for each task the labels `[M, ...]`, a tensor, array or list; or a function from positions
            to them, where none is missing. Integers become `int64`, as torch's cross-entropy needs them.
        loss, metrics: for each task, as `meta_backward` and `evaluate` take them.
        outputs: for each task the numbers that its head has to give.
        count: M, where inputs and labels are all functions.
        device: where the tensors are kept and the episodes are made.

    Raises:
        ValueError: no task; a task without loss, metrics or outputs; numbers of examples that differ.
        TypeError: labels or inputs that are no numbers.

    >>> from torch.nn import functional as F
    >>> from metamtl.losses import mean_over_labeled
    >>> from metamtl.metrics import accuracy, mse
    >>> own = LabeledTasks(
    ...     torch.randn(100, 8),
    ...     {"kind": torch.randint(3, (100,)), "size": torch.randn(100, 1)},
    ...     loss={"kind": F.cross_entropy, "size": mean_over_labeled(F.mse_loss)},
    ...     metrics={"kind": {"accuracy": accuracy}, "size": {"mse": mse}},
    ...     outputs={"kind": 3, "size": 1},
    ... )
    >>> {task: tuple(e.query.y.shape) for task, e in own.sample(16, torch.Generator()).items()}
    {'kind': (16,), 'size': (16, 1)}
    """

    def __init__(
        self,
        inputs: Any,
        labels: Mapping[str, Any],
        *,
        loss: Mapping[str, Loss],
        metrics: Mapping[str, Mapping[str, Metric]],
        outputs: Mapping[str, int],
        count: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not labels:
            raise ValueError("labels is empty; give the labels of at least one task.")
        for what, given in (("loss", loss), ("metrics", metrics), ("outputs", outputs)):
            if lacking := [task for task in labels if task not in given]:
                raise ValueError(f"{what} has no entry for tasks {lacking}; it has {', '.join(given)}.")
        labels = {task: y if callable(y) else _labels(y, task) for task, y in labels.items()}
        inputs = inputs if callable(inputs) else _converted(inputs)
        kept = {task: y for task, y in labels.items() if isinstance(y, Tensor)}
        sizes = {task: len(y) for task, y in kept.items()}
        if not callable(inputs):
            sizes |= {f"input {i}": len(leaf) for i, leaf in enumerate(tree_leaves(inputs))}
        if count is not None:
            sizes["count"] = count
        if len(set(sizes.values())) != 1:
            raise ValueError(
                f"the number of examples is not known: found {sizes}; each example needs its input and, for"
                " each task, one label or a missing one."
            )
        self.tasks = tuple(labels)
        self.loss = {task: loss[task] for task in labels}
        self.metrics = {task: metrics[task] for task in labels}
        self.outputs = {task: outputs[task] for task in labels}
        self._inputs = inputs if callable(inputs) else tree_map(lambda leaf: leaf.to(device), inputs)
        self._labels = {task: y.to(device) if isinstance(y, Tensor) else y for task, y in labels.items()}
        self._count = next(iter(sizes.values()))
        there = {task: has_label(y).cpu() for task, y in kept.items()}
        # Only where labels are missing does a batch have to be looked at.
        self._there = {task: some for task, some in there.items() if not bool(some.all())}

    def __len__(self) -> int:
        return self._count

    @property
    def inputs(self) -> int:
        """Numbers of one example, where the input is a tensor: what the first layer takes."""
        if not isinstance(self._inputs, Tensor):
            raise ValueError("inputs are not one tensor, so that there is no number of them.")
        return self._inputs[0].numel()

    def sample(self, n: int, rng: torch.Generator) -> dict[str, Episode]:
        """`n` different examples, drawn with the random numbers of `rng` (a generator on the CPU).

        Returns:
            Task -> `Episode` without support; `query.x` is one object for all. Tasks without a label in
            this batch are left out.

        Raises:
            ValueError: `n` is not between 1 and the number of examples, or none of them is labelled.
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"n={n} examples asked for; this split has {len(self)}.")
        return self.at(torch.randperm(len(self), generator=rng)[:n])

    def at(self, positions: Tensor) -> dict[str, Episode]:
        """The examples at `positions` `[n]`, in the form of `sample`."""
        positions = torch.as_tensor(positions, device="cpu")
        absent = {task for task, there in self._there.items() if not bool(there[positions].any())}
        if len(absent) == len(self.tasks):
            raise ValueError(
                f"none of the {len(positions)} drawn examples has a label; draw more at a time."
            )
        x = self._x(positions)
        found = {}
        for task in self.tasks:
            if task not in absent:
                labels = self._labels[task]
                y = labels[positions.to(labels.device)] if isinstance(labels, Tensor) else labels(positions)
                ways = None if y.is_floating_point() else self.outputs[task]
                found[task] = Episode(None, Batch(x, y), ways=ways)
        return found

    def _x(self, positions: Tensor) -> Any:
        if callable(self._inputs):
            return self._inputs(positions)
        return tree_map(lambda leaf: leaf[positions.to(leaf.device)], self._inputs)


def _converted(inputs: Any) -> Any:
    """Arrays and lists of rows as tensors; tuples and mappings hold the arguments of the model."""
    if isinstance(inputs, Mapping):
        return {name: _converted(part) for name, part in inputs.items()}
    if isinstance(inputs, tuple):
        parts = [_converted(part) for part in inputs]
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else tuple(parts)
    return widened(as_tensor(inputs, "inputs"))


def _labels(y: Any, task: str) -> Tensor:
    try:
        y = widened(as_tensor(y, f"the labels of task {task!r}"))
    except TypeError as error:
        raise TypeError(
            f"{error} np.unique(labels, return_inverse=True)[1] numbers the classes of strings."
        ) from error
    return y if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool else y.long()
