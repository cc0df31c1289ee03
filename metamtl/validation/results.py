"""Checks of losses and gradients before `.grad` changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..aggregators import Aggregator
from ..engines import TaskGradients
from ..engines.exchange import LOCAL
from ..episode import Batch, Episode
from ..functional import Params
from ..functional.labels import has_label
from ..losses import Loss
from ..meta_batch import MetaBatch


@contextmanager
def missing_derivatives_explained() -> Iterator[None]:
    """Context manager that adds the remedy to torch's error about a missing second derivative."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        # torch names the first derivative: "the derivative for 'aten::_cdist_backward' is not implemented"
        match = re.search(r"derivative for '?([\w:.]+_backward)'? is not implemented", str(error))
        if match is None:
            raise
        raise NotImplementedError(
            f"torch has no second derivative of an operation of the model or the loss ({match[1]}); use"
            " differentiation='first_order', or write it in operations that have one."
        ) from error


def check_finite(
    model: nn.Module,
    adapter: Adapter,
    episodes: Episode | MetaBatch | Mapping[str, Episode],
    loss: Loss | Mapping[str, Loss],
    grads: TaskGradients,
) -> None:
    """Reject losses and gradients that are not finite; the error names the tasks and the inner step.

    Also reject a loss of zero for a task without labels, which would look like a solved task.
    """
    exchange = grads.exchange
    unlabeled = _unlabeled(episodes, grads.losses == 0) if exchange is LOCAL else []
    if unlabeled:
        raise ValueError(
            f"the loss of tasks {unlabeled} is zero, because none of their examples is labeled. Nothing was"
            " added to .grad. Exclude these tasks from the step; a mean over the labels, such as"
            " metamtl.losses.mean_over_labeled, would be NaN."
        )
    other = dict(grads.adapter_params)
    for name, by_task in grads.task_specific.items():
        other |= {f"{name} (task {task})": gradient for task, gradient in by_task.items()}
    if exchange.all(_finite_sum(grads.losses, *grads.shared.values(), *other.values()))[0]:
        return
    bad_loss, loss_ranks = exchange.blame(~torch.isfinite(exchange.own_losses(grads.losses)))
    bad_row = torch.zeros_like(exchange.own_losses(grads.losses), dtype=torch.bool)
    for matrix in grads.matrices().values():
        bad_row = bad_row | ~torch.isfinite(matrix).all(1)
    bad_row, row_ranks = exchange.blame(bad_row)
    if not bool((bad_loss | bad_row).any()):
        finite = exchange.all(*(bool(torch.isfinite(gradient).all()) for gradient in other.values()))
        bad_names = [name for name, is_finite in zip(other, finite) if not is_finite]
        if not bad_names:
            return  # finite values whose sum overflowed
        raise FloatingPointError(
            f"the gradient of {', '.join(bad_names[:10])} is not finite, but the loss of every task is."
            f"{_largest(grads)} Nothing was added to .grad."
        )
    kind, mask, ranks = "gradient", bad_row, row_ranks
    if bool(bad_loss.any()):
        kind, mask, ranks = "loss", bad_loss, loss_ranks
    positions = mask.nonzero().flatten().tolist()
    names = list(episodes) if isinstance(episodes, Mapping) else list(range(len(mask)))
    bad = [names[position] for position in positions]
    first = positions[0]
    detail = ""
    if not isinstance(episodes, Mapping) and not isinstance(loss, Mapping):
        detail = _inner_step(model, adapter, episodes[first], loss, first)
    elif exchange is LOCAL and (unlabeled := _unlabeled(episodes, bad_loss)):
        detail = f" None of the examples of {unlabeled} is labeled: exclude these tasks from the step."
    values = f" (losses {grads.losses[positions[:5]].tolist()})" if kind == "loss" else ""
    where = f" in process {', '.join(map(str, ranks))}" if ranks else ""
    raise FloatingPointError(
        f"the {kind} of tasks {bad[:10]} of {len(names)} is not finite{where}{values}.{detail}"
        f"{_largest(grads)}"
        " Nothing was added to .grad. Check the data of these tasks, or lower the learning rates."
    )


def _largest(grads: TaskGradients, count: int = 3) -> str:
    """Name the tensors with the largest gradients."""
    tensors = {**grads.shared, **grads.adapter_params}
    tensors |= {name: torch.stack([*by_task.values()]) for name, by_task in grads.task_specific.items()}
    sizes = {name: float(rows.abs().max()) for name, rows in tensors.items() if rows.numel()}
    # NaN first: it is not comparable.
    order = sorted(sizes, key=lambda name: -math.inf if math.isnan(sizes[name]) else -sizes[name])
    return " Largest gradients: " + ", ".join(f"{name} {sizes[name]:.1e}" for name in order[:count]) + "."


def _finite_sum(*tensors: Tensor) -> bool:
    """Whether the sum of all tensors is finite, with one synchronization with the device."""
    return bool(torch.isfinite(torch.stack([tensor.sum() for tensor in tensors]).sum()))


def _unlabeled(episodes: Any, suspected: Tensor) -> list[str]:
    """The suspected named tasks that have no label in their support or query set."""
    if not isinstance(episodes, Mapping):
        return []
    return [
        name
        for (name, episode), suspect in zip(episodes.items(), suspected.tolist())
        if suspect and not all(_has_label(batch) for batch in (episode.support, episode.query))
    ]


def _has_label(batch: Batch | None) -> bool:
    y = None if batch is None else batch[1]
    if not isinstance(y, Tensor) or not (y.is_floating_point() or y.dtype in (torch.int64, torch.int32)):
        return True  # labels of other types cannot be missing
    return bool(has_label(y).any())


def check_direction(
    aggregator: Aggregator,
    episodes: MetaBatch | Mapping[str, Episode],
    grads: TaskGradients,
    direction: Tensor,
    gradients: Params,
) -> None:
    """Reject a direction that is not finite, or that is zero because the gradient of one task is zero."""
    name = getattr(aggregator, "name", type(aggregator).__name__)  # any module can be an aggregator
    exchange = grads.exchange
    finite, zero = exchange.all(_finite_sum(direction, *gradients.values()), not direction.any())
    if not finite:
        parts = ("direction", [direction]), ("gradient of a parameter", [*gradients.values()])
        are_finite = exchange.all(*(all(bool(t.isfinite().all()) for t in tensors) for _, tensors in parts))
        for (kind, _), is_finite in zip(parts, are_finite):
            if not is_finite:
                raise FloatingPointError(
                    f"every task's gradient is finite, but the {kind} that {name} computes is not."
                    " Nothing was added to .grad. Lower the learning rates, or rescale the losses."
                )
    if zero:
        zero_rows = ~exchange.full(grads.matrix()).any(1)
        if bool(zero_rows.any()) and not bool(zero_rows.all()):
            names = list(episodes) if isinstance(episodes, Mapping) else list(range(len(zero_rows)))
            tasks = [names[position] for position in zero_rows.nonzero().flatten().tolist()]
            raise ValueError(
                f"{name} makes a zero direction, because the gradient of tasks {tasks[:10]} is zero; no"
                " task would learn anything. Nothing was added to .grad. Exclude these tasks from the step,"
                " or use an aggregator that they cannot stop, such as Mean."
            )


def _inner_step(model: nn.Module, adapter: Adapter, episode: Episode, loss: Loss, task: int) -> str:
    """Describe at which inner step the support loss of a task is no longer finite."""
    support = episode.support
    if support is None:
        return ""
    with torch.no_grad():
        for step, params in enumerate(adapter.path(model, support, loss, task=episode.task)):
            value = loss(adapter.predict(model, params, support.x), support.y)
            if not torch.isfinite(value):
                return f" Task {task}: the support loss is {float(value)} after {step} inner steps."
    return (
        f" Task {task}: the support loss stays finite in all inner steps; that of the query set does not."
    )
