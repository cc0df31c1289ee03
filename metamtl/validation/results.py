"""Checks of losses and gradients after they are computed, and before `.grad` changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..aggregators import Aggregator
from ..engines import TaskGradients
from ..engines.base import index_task
from ..episode import Batch, Episode
from ..functional import Params, forward
from ..functional.labels import has_label
from ..losses import Loss


def check_finite(
    model: nn.Module,
    adapter: Adapter,
    episodes: Episode | Mapping[str, Episode],
    loss: Loss | Mapping[str, Loss],
    grads: TaskGradients,
) -> None:
    """Refuse a loss or a gradient that is NaN or infinite, naming the tasks and the inner step.

    And a loss of zero where nothing is labelled, which would look like a solved task.
    """
    silent = _unlabelled(episodes, grads.losses == 0)
    if silent:
        raise ValueError(
            f"the loss of tasks {silent} is zero, for none of their examples is labelled. Nothing was added"
            " to .grad. Leave these tasks out of the step; a loss that is a mean over the labels, as"
            " metamtl.losses.mean_over_labeled makes one, would be NaN."
        )
    alone = dict(grads.adapter_params)
    for name, by_task in grads.task_specific.items():
        alone |= {f"{name} (task {task})": gradient for task, gradient in by_task.items()}
    if grads.exchange.all(_finite_sum(grads.losses, *grads.shared.values(), *alone.values())):
        return
    bad_loss = ~torch.isfinite(grads.losses)
    bad_row = grads.exchange.select(torch.zeros_like(bad_loss))
    for rows in grads.shared.values():
        bad_row = bad_row | ~torch.isfinite(rows.reshape(len(rows), rows.shape[1:].numel())).all(1)
    bad_row = grads.exchange.gather(bad_row)
    if not bool((bad_loss | bad_row).any()):
        finite = {name: bool(torch.isfinite(gradient).all()) for name, gradient in alone.items()}
        wrong_ones = [name for name, is_finite in finite.items() if not grads.exchange.all(is_finite)]
        if not wrong_ones:
            return  # finite values whose sum overflowed
        raise FloatingPointError(
            f"the gradient of {', '.join(wrong_ones[:10])} is not finite, though every task's loss is."
            " Nothing was added to .grad."
        )
    what, wrong = ("loss", bad_loss) if bool(bad_loss.any()) else ("gradient", bad_row)
    positions = wrong.nonzero().flatten().tolist()
    names = list(episodes) if isinstance(episodes, Mapping) else list(range(len(wrong)))
    bad = [names[position] for position in positions]
    first = positions[0]
    detail = ""
    if isinstance(episodes, Episode) and not isinstance(loss, Mapping) and episodes.support is not None:
        detail = _inner_step(model, adapter, episodes, loss, first)
    elif unlabelled := _unlabelled(episodes, bad_loss):
        detail = f" None of the examples of {unlabelled} is labelled: leave these tasks out of the step."
    values = f" (losses {grads.losses[positions[:5]].tolist()})" if what == "loss" else ""
    raise FloatingPointError(
        f"the {what} of tasks {bad[:10]} of {len(names)} is not finite{values}.{detail}"
        " Nothing was added to .grad. Look at the data of these tasks, or lower the learning rates."
    )


def _finite_sum(*tensors: Tensor) -> bool:
    """Whether the sum of everything is finite, for which one look at the device suffices."""
    return math.isfinite(float(torch.stack([tensor.sum() for tensor in tensors]).sum()))


def _unlabelled(episodes: Episode | Mapping[str, Episode], suspected: Tensor) -> list[str]:
    """Those of the suspected named tasks without a single label in their support or query set."""
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
        return True  # there is no label that says "missing"
    return bool(has_label(y).any())


def check_direction(
    aggregator: Aggregator,
    episodes: Episode | Mapping[str, Episode],
    zero_rows: Callable[[], Tensor],
    direction: Tensor,
    gradients: Params,
) -> None:
    """Reject an aggregated direction that is not finite, or zero because the gradient of a task is.

    `zero_rows()` `[T]`: whether the gradient of each task is zero.
    """
    name = getattr(aggregator, "name", type(aggregator).__name__)  # any module may aggregate
    if not _finite_sum(direction, *gradients.values()):
        for what, found in (("direction", [direction]), ("gradient behind it", [*gradients.values()])):
            if not all(bool(torch.isfinite(part).all()) for part in found):
                raise FloatingPointError(
                    f"every task's gradient is finite, but of what {name} made of them the {what} is not."
                    " Nothing was added to .grad. Lower the learning rates, or rescale the losses."
                )
    if not bool(direction.any()):
        zero = zero_rows()
        if bool(zero.any()) and not bool(zero.all()):
            names = list(episodes) if isinstance(episodes, Mapping) else list(range(len(zero)))
            still = [names[position] for position in zero.nonzero().flatten().tolist()]
            raise ValueError(
                f"{name} makes a zero direction, for the gradient of tasks {still[:10]} is zero; no task"
                " would learn anything. Nothing was added to .grad. Leave these tasks out of the step, or"
                " use an aggregator that gives them no say, such as Mean."
            )


def _inner_step(model: nn.Module, adapter: Adapter, episodes: Episode, loss: Loss, task: int) -> str:
    """At which inner step the support loss of one task left the finite numbers."""
    support, ids = index_task((episodes.support, episodes.task), task)
    support = Batch(*support)
    with torch.no_grad():
        for step, params in enumerate(adapter.path(model, support, loss, task=ids)):
            value = loss(forward(model, params, support.x), support.y)
            if not torch.isfinite(value):
                return f" Task {task}: the support loss is {float(value)} after {step} inner steps."
    return f" Task {task}: the support loss stays finite in every inner step; the query set does not."
