"""What cannot work is refused before anything changes, in words that say what to do."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import Adapter, Shared
from .aggregators import Aggregator
from .engines import Rows
from .engines.base import at
from .episode import Batch, Episode
from .functional import Params, forward
from .task import Loss, labelled


def check_episodes(
    model: nn.Module,
    adapter: Adapter,
    episodes: Episode | Mapping[str, Episode],
    loss: Any,
) -> None:
    """Refuse episodes, or an adapter, that cannot work with the model."""
    if not isinstance(episodes, Mapping):
        if isinstance(loss, Mapping):
            raise ValueError("a dict of losses needs a dict of episodes, one for each named task.")
        episodes.check()
        adapter.check(model, episodes.task)
        return
    if not episodes:
        raise ValueError("the dict of episodes is empty; give at least one named task.")
    if not isinstance(loss, Mapping) or set(episodes) - set(loss):
        found = sorted(loss) if isinstance(loss, Mapping) else "one loss for all"
        missing = sorted(set(episodes) - set(loss)) if isinstance(loss, Mapping) else sorted(episodes)
        raise ValueError(f"no loss for tasks {missing}; loss must be a dict by task name, found {found}.")
    for name, episode in episodes.items():
        if not callable(loss[name]):
            raise ValueError(
                f"the loss of task {name!r} is {loss[name]!r}; give a function of (output, y)."
            )
        episode.check(named=name)
    adapted = [name for name, episode in episodes.items() if episode.support is not None]
    if not adapted and not isinstance(adapter, Shared):
        raise ValueError(
            f"{type(adapter).__name__} adapts to support sets, but none of the tasks"
            f" {', '.join(map(repr, episodes))} has one; give some, or use Shared()."
        )
    for name in adapted:
        adapter.check(model, name)
    _check_takes_task(model)


def _check_takes_task(model: nn.Module) -> None:
    """Named tasks tell the model which of them is asked for."""
    method = getattr(model.forward, "__func__", None)
    # A class's method is remembered; an instance's own function may hold the model, and would keep it.
    known = method is not None and "forward" not in vars(model)
    if not (_takes_task(method) if known else _takes_task.__wrapped__(model.forward)):
        raise ValueError(
            f"{type(model).__name__}.forward takes no argument task=, by which named tasks choose their"
            " head; add one, or use nets.named_heads(backbone, outputs)."
        )


@lru_cache(maxsize=128)
def _takes_task(forward: Callable[..., Any]) -> bool:
    parameters = inspect.signature(forward).parameters
    return "task" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_finite(
    model: nn.Module,
    adapter: Adapter,
    episodes: Episode | Mapping[str, Episode],
    loss: Loss | Mapping[str, Loss],
    found: Rows,
) -> None:
    """Refuse a loss or a gradient that is NaN or infinite, naming the tasks and the inner step.

    And a loss of zero where nothing is labelled, which would look like a solved task.
    """
    silent = _unlabelled(episodes, found.losses == 0)
    if silent:
        raise ValueError(
            f"the loss of tasks {silent} is zero, for none of their examples is labelled. Nothing was added"
            " to .grad. Leave these tasks out of the step; a loss that is a mean over the labels, as"
            " metamtl.task.masked makes one, would be NaN."
        )
    alone = {**found.private, **found.own}
    if _finite_sum(found.losses, *found.shared.values(), *alone.values()):
        return
    bad_loss = ~torch.isfinite(found.losses)
    bad_row = torch.zeros_like(bad_loss)
    for rows in found.shared.values():
        bad_row |= ~torch.isfinite(rows.reshape(len(rows), -1)).all(1)
    if not bool((bad_loss | bad_row).any()):
        wrong_ones = [name for name, gradient in alone.items() if not bool(torch.isfinite(gradient).all())]
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
    values = f" (losses {found.losses[positions[:5]].tolist()})" if what == "loss" else ""
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
    return bool(labelled(y).any())


def check_direction(
    aggregator: Aggregator,
    episodes: Episode | Mapping[str, Episode],
    rows: Tensor,
    direction: Tensor,
    gradients: Params,
) -> None:
    """Refuse what became of finite rows `[T, n]`: not finite, or zero because the row of one task is."""
    name = getattr(aggregator, "name", type(aggregator).__name__)  # any module may aggregate
    if not _finite_sum(direction, *gradients.values()):
        for what, found in (("direction", [direction]), ("gradient behind it", [*gradients.values()])):
            if not all(bool(torch.isfinite(part).all()) for part in found):
                raise FloatingPointError(
                    f"every task's gradient is finite, but of what {name} made of them the {what} is not."
                    " Nothing was added to .grad. Lower the learning rates, or rescale the losses."
                )
    if not bool(direction.any()):
        zero = ~rows.any(1)
        if bool(zero.any()) and not bool(zero.all()):
            names = list(episodes) if isinstance(episodes, Mapping) else list(range(len(rows)))
            still = [names[position] for position in zero.nonzero().flatten().tolist()]
            raise ValueError(
                f"{name} makes a zero direction, for the gradient of tasks {still[:10]} is zero; no task"
                " would learn anything. Nothing was added to .grad. Leave these tasks out of the step, or"
                " use an aggregator that gives them no say, such as Mean."
            )


def _inner_step(model: nn.Module, adapter: Adapter, episodes: Episode, loss: Loss, task: int) -> str:
    """At which inner step the support loss of one task left the finite numbers."""
    support, ids = at((episodes.support, episodes.task), task)
    support = Batch(*support)
    with torch.no_grad():
        for step, params in enumerate(adapter.path(model, support, loss, task=ids)):
            value = loss(forward(model, params, support.x), support.y)
            if not torch.isfinite(value):
                return f" Task {task}: the support loss is {float(value)} after {step} inner steps."
    return f" Task {task}: the support loss stays finite in every inner step; the query set does not."
