"""Named tasks that share one input; each example has a label for every task, or a missing one."""

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

Maker = Callable[[Tensor], Tensor]  # maps positions [n] to the values at these positions


class LabeledTasks:
    """Batches of examples with one label per task; all tasks of a batch share the input.

    A label may be missing: NaN for float labels, `losses.MISSING` (-100) for integer labels. The loss of
    the task must ignore missing labels (`losses.mean_over_labeled`; torch's cross-entropy ignores -100). If
    no example of a batch has a label for a task, the dict of this batch does not contain the task.

    Args:
        inputs: the inputs of the model for all M examples: a tensor, array or list of rows, or several of
            them in a tuple or dict; or a function that maps positions `[n]` to inputs, to compute them on
            demand.
        labels: for each task, the labels `[M, ...]` as a tensor, array or list; or a function that maps
            positions to labels, none of which is missing. Integers are converted to `int64`, which torch's
            cross-entropy requires.
        loss, metrics: for each task, as in `meta_backward` and `evaluate`.
        outputs: for each task, the number of outputs of its head.
        count: M, required if inputs and labels are all functions.
        device: device of the tensors and the episodes.

    Raises:
        ValueError: no task; a task without loss, metrics or outputs; different numbers of examples.
        TypeError: labels or inputs that are not numeric.

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
            raise ValueError("labels is empty; pass the labels of at least one task.")
        for what, entries in (("loss", loss), ("metrics", metrics), ("outputs", outputs)):
            if missing := [task for task in labels if task not in entries]:
                raise ValueError(f"{what} has no entry for tasks {missing}; it has {', '.join(entries)}.")
        labels = {task: y if callable(y) else _labels(y, task) for task, y in labels.items()}
        inputs = inputs if callable(inputs) else _converted(inputs)
        tensors = {task: y for task, y in labels.items() if isinstance(y, Tensor)}
        sizes = {task: len(y) for task, y in tensors.items()}
        if not callable(inputs):
            sizes |= {f"input {i}": len(leaf) for i, leaf in enumerate(tree_leaves(inputs))}
        if count is not None:
            sizes["count"] = count
        if len(set(sizes.values())) != 1:
            raise ValueError(
                f"the number of examples is not known: found {sizes}; each example needs an input and, for"
                " each task, one label or a missing one."
            )
        self.tasks = tuple(labels)
        self.loss = {task: loss[task] for task in labels}
        self.metrics = {task: metrics[task] for task in labels}
        self.outputs = {task: outputs[task] for task in labels}
        self._inputs = inputs if callable(inputs) else tree_map(lambda leaf: leaf.to(device), inputs)
        self._labels = {task: y.to(device) if isinstance(y, Tensor) else y for task, y in labels.items()}
        self._count = next(iter(sizes.values()))
        masks = {task: has_label(y).cpu() for task, y in tensors.items()}
        # Batches are checked only for tasks that have missing labels.
        self._there = {task: mask for task, mask in masks.items() if not bool(mask.all())}

    def __len__(self) -> int:
        return self._count

    @property
    def inputs(self) -> int:
        """Number of input features, if the input is one tensor: the input size of the first layer."""
        if not isinstance(self._inputs, Tensor):
            raise ValueError("inputs are not one tensor, so the number of input features is not defined.")
        return self._inputs[0].numel()

    def sample(self, n: int, rng: torch.Generator) -> dict[str, Episode]:
        """Draw `n` distinct examples using `rng` (a generator on the CPU).

        Returns:
            Task -> `Episode` without support; all tasks share one `query.x`. Tasks without a label in this
            batch are omitted.

        Raises:
            ValueError: `n` is not between 1 and the number of examples, or none of the drawn examples has a
                label.
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"n={n} examples requested, but this split has {len(self)}; pass a smaller n.")
        return self.at(torch.randperm(len(self), generator=rng)[:n])

    def at(self, positions: Tensor) -> dict[str, Episode]:
        """The examples at `positions` `[n]`, in the format of `sample`."""
        positions = torch.as_tensor(positions, device="cpu")
        absent = {task for task, mask in self._there.items() if not bool(mask[positions].any())}
        if len(absent) == len(self.tasks):
            raise ValueError(
                f"none of the {len(positions)} drawn examples has a label; draw more examples per batch."
            )
        x = self._x(positions)
        episodes = {}
        for task in self.tasks:
            if task not in absent:
                labels = self._labels[task]
                y = labels[positions.to(labels.device)] if isinstance(labels, Tensor) else labels(positions)
                ways = None if y.is_floating_point() else self.outputs[task]
                episodes[task] = Episode(None, Batch(x, y), ways=ways)
        return episodes

    def _x(self, positions: Tensor) -> Any:
        if callable(self._inputs):
            return self._inputs(positions)
        return tree_map(lambda leaf: leaf[positions.to(leaf.device)], self._inputs)


def _converted(inputs: Any) -> Any:
    """Convert arrays and lists of rows to tensors; tuples and mappings are arguments of the model."""
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
            f"{error} For strings, np.unique(labels, return_inverse=True)[1] returns integer class ids."
        ) from error
    return y if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool else y.long()
