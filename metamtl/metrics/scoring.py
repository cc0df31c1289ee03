"""Estimates of metrics, over the tasks of a meta-batch or the examples of a named task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..estimate import Estimate
from ..functional.labels import has_label, is_labeled
from . import Metric


def check_metrics(metrics: Any, name: str | None = None) -> None:
    """Check the metrics of a meta-batch or of the named task `name`, before anything is computed.

    Raises:
        TypeError: `metrics` is not a mapping from names to `Metric`.
        ValueError: the mapping is empty.
    """
    where = "" if name is None else f" of task {name!r}"
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"metrics{where} is a {type(metrics).__name__}, but an Estimate is returned by name; pass a"
            " dict, such as {'accuracy': metamtl.metrics.accuracy}."
        )
    if not metrics:
        raise ValueError(f"metrics{where} is empty; pass at least one metric, or None to measure the loss.")
    for key, metric in metrics.items():
        if isinstance(metric, Metric):
            continue
        if isinstance(metric, Mapping):
            remedy = "a dict of metrics for each task needs a dict of episodes"
        else:
            function = getattr(metric, "__name__", "function")
            remedy = f"pass Metric({function}, higher_is_better=True), or False if a lower value is better"
        raise TypeError(
            f"metrics[{key!r}]{where} is a {type(metric).__name__}, not a Metric, so its direction is"
            f" unknown; {remedy}."
        )


def score_tasks(
    metrics: Mapping[str, Metric], outputs: Any, y: Any, positions: Sequence[int] | None = None
) -> dict[str, Estimate]:
    """Estimate every metric over the tasks of a meta-batch.

    The value of a task is the mean over its labeled examples, or the scalar that the metric returns for
    its query set. A metric with one value per example is computed for all tasks in one call, if the result
    agrees with separate calls for the first and the last task.

    Args:
        metrics: metrics by name.
        outputs: outputs of the model on the query sets, a tree of tensors `[T, Q, ...]`.
        y: labels, a tree of tensors `[T, Q, ...]`, or `[T]` for one label per task.
        positions: numbers of the tasks in error messages; if None, from 0.

    Returns:
        `{name: Estimate}`, each over T values.

    Raises:
        ValueError: a task has no labeled example, or the metric does not accept the shapes.
        FloatingPointError: an output of a labeled example, or a value, is not finite. The message names the
            tasks. A score of minus infinity is valid if another score of the example is finite.

    >>> from metamtl.metrics import accuracy
    >>> scores, y = torch.eye(2).expand(3, 2, 2), torch.tensor([[0, 1], [0, 0], [1, -100]])
    >>> score_tasks({"accuracy": accuracy}, scores, y)["accuracy"].values
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    with torch.no_grad():
        num_tasks = len(_first_tensor(outputs))
        names = [str(position) for position in positions or range(num_tasks)]
        num_missing = _check_tasks(outputs, y, names)
        estimates = {}
        for name, metric in metrics.items():
            values = _task_values(name, metric, outputs, y, names)
            _check_values(name, values, names)
            estimates[name] = Estimate.of(
                values, higher_is_better=metric.higher_is_better, num_missing=num_missing
            )
    return estimates


def score_named(metrics: Mapping[str, Metric], output: Any, y: Any, name: str) -> dict[str, Estimate]:
    """Estimate every metric over the labeled query examples of one named task.

    A metric that returns a scalar has one value, so its confidence interval is NaN.

    Args:
        metrics: metrics by name.
        output: output of the model on the query set, a tree of tensors `[Q, ...]`.
        y: labels, a tree of tensors `[Q, ...]`.
        name: name of the task for error messages.

    Raises:
        ValueError, FloatingPointError: as in `score_tasks`.

    >>> from metamtl.metrics import mse
    >>> y = torch.tensor([1.0, torch.nan, 1.0])
    >>> print(score_named({"mse": mse}, torch.zeros(3), y, "size")["mse"])
    1.0000 ± 0.0000 (n=2, 1 examples without a label)
    """
    with torch.no_grad():
        _first_tensor(output)
        num_missing = _check_tasks(_with_task_axis(output), _with_task_axis(y), [repr(name)])
        estimates = {}
        for key, metric in metrics.items():
            values = _call(key, metric, output, y, repr(name))
            _check_values(key, values[None] if values.dim() == 0 else values.sum()[None], [repr(name)])
            estimates[key] = Estimate.of(
                values, higher_is_better=metric.higher_is_better, num_missing=num_missing
            )
    return estimates


def _task_values(name: str, metric: Metric, outputs: Any, y: Any, names: Sequence[str]) -> Tensor:
    """One value per task, `[T]`."""
    last = len(names) - 1

    def one(task: int) -> Tensor:
        return _call(name, metric, _at(outputs, task), _at(y, task), names[task])

    ends = {task: one(task) for task in {0, last}}
    if last > 1:
        values = _all_at_once(metric, outputs, y, ends[0], ends[last])
        if values is not None:
            return values
    by_task = [ends[task] if task in ends else one(task) for task in range(last + 1)]
    return torch.stack([values.double().mean() for values in by_task])


def _all_at_once(metric: Metric, outputs: Any, y: Any, first: Tensor, last: Tensor) -> Tensor | None:
    """The values of all tasks from one call; None if the metric depends on the whole set of examples.

    The values of such a metric (a scalar, or errors divided by their mean) for all examples differ from
    those for the first and the last task.
    """
    tensors = [leaf for leaf in tree_leaves((outputs, y)) if isinstance(leaf, Tensor)]
    if first.dim() == 0 or any(t.dim() < 2 or t.shape[:2] != tensors[0].shape[:2] for t in tensors):
        return None
    flat = tree_map(lambda leaf: leaf.flatten(0, 1) if isinstance(leaf, Tensor) else leaf, (outputs, y))
    try:
        values = metric(*flat)
    except (ValueError, RuntimeError, IndexError):
        return None  # the metric needs the shape of one task
    num_tasks, examples = tensors[0].shape[:2]
    counts = [torch.full((num_tasks,), examples, device=values.device)]
    if isinstance(y, Tensor):
        mask = is_labeled(y)
        counts = [mask.flatten(2).any(2).sum(1) if mask.dim() > 2 else mask.sum(1), mask.flatten(1).sum(1)]
    count = next((count for count in counts if int(count.sum()) == len(values.reshape(-1))), None)
    if values.dim() == 0 or count is None or not _equal(values[: len(first)], first):
        return None
    if not _equal(values[-len(last) :], last):
        return None
    count = count.to(values.device)
    task = torch.arange(num_tasks, device=values.device).repeat_interleave(count)
    sums = torch.zeros(num_tasks, dtype=torch.float64, device=values.device)
    return sums.index_add(0, task, values.double()) / count


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether `a` and `b` are equal up to rounding, which may depend on the number of examples."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def _call(name: str, metric: Metric, output: Any, y: Any, task: str) -> Tensor:
    """Compute the values of one task; errors name the metric and the task."""
    try:
        return metric(output, y)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"metric {name!r}, task {task}: {error}") from error


def _check_tasks(outputs: Any, y: Any, names: Sequence[str]) -> int:
    """Check labels and outputs of all tasks; return the number of examples without a label."""
    mask = None
    if isinstance(y, Tensor) and y.dim() > 0:
        mask = has_label(y.flatten(0, 1)).view(y.shape[:2]) if y.dim() > 1 else is_labeled(y)[:, None]
        if unlabeled := _named(~mask.any(1), names):
            raise ValueError(
                f"no query example of task {unlabeled} has a label, so there is nothing to measure; exclude"
                " the task."
            )
    for leaf in tree_leaves(outputs):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or bool(leaf.isfinite().all()):
            continue
        if bad := _named(_not_finite(leaf, y, mask), names):
            raise FloatingPointError(
                f"the model's output for task {bad} is not finite, so no metric applies. Check the data"
                " of these tasks, or lower the learning rates; the head that Prototype computes is NaN for"
                " a class without support examples."
            )
    return 0 if mask is None else int((~mask).sum())


def _not_finite(output: Tensor, y: Any, mask: Tensor | None) -> Tensor:
    """The tasks in which an output of a labeled example is not finite, `[T]`."""
    bad = output.isnan() | output.isposinf()
    # A model may exclude a class with minus infinity, but every example needs a finite score.
    bad |= output.isneginf().all(-1, keepdim=True) if output.dim() > 2 else output.isneginf()
    if isinstance(y, Tensor) and output.shape[: y.dim()] == y.shape:
        bad &= is_labeled(y).view(*y.shape, *[1] * (output.dim() - y.dim()))
    elif mask is not None and output.shape[:2] == mask.shape:
        bad &= mask.view(*mask.shape, *[1] * (output.dim() - 2))
    return bad.flatten(1).any(1) if bad.dim() > 1 else bad


def _check_values(name: str, values: Tensor, names: Sequence[str]) -> None:
    if bad := _named(~values.isfinite(), names):
        raise FloatingPointError(
            f"metric {name!r} of task {bad} is not finite. If some labels of an example are missing, the"
            " metric or loss must exclude them, as metamtl.losses.mean_over_labeled does."
        )


def _named(mask: Tensor, names: Sequence[str]) -> str:
    """The names of at most ten tasks in `mask`; an empty string if there are none."""
    return ", ".join(names[task] for task in mask.nonzero().flatten().tolist()[:10])


def _first_tensor(outputs: Any) -> Tensor:
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError(
            f"the model returned a {type(outputs).__name__} without a tensor; metrics need its output."
        )
    return tensors[0]


def _at(tree: Any, task: int) -> Any:
    if isinstance(tree, Tensor):
        return tree[task]
    return tree_map(lambda leaf: leaf[task] if isinstance(leaf, Tensor) else leaf, tree)


def _with_task_axis(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf[None] if isinstance(leaf, Tensor) else leaf, tree)
