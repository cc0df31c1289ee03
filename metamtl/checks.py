"""What cannot work is rejected before anything changes, with the remedy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import Adapter, Shared
from .aggregators import Aggregator
from .engines import Auto, Engine, Loop, TaskGradients
from .engines.base import index_task
from .episode import Batch, Episode, as_episode
from .functional import Params, forward
from .losses import checked_loss
from .recipes import Recipe
from .task import Loss, labelled

__all__ = ["check_call", "check_direction", "check_features", "check_finite", "checked_loss"]


def check_call(model: Any, recipe: Any, episodes: Any, loss: Any, engine: Any) -> Any:
    """Reject arguments that cannot work together; returns the episodes as `Episode` objects."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise TypeError(
            f"the model is wrapped in {type(model).__name__}, whose synchronization backward() starts and"
            " meta_backward does not, so that the replicas would diverge; pass model.module."
        )
    if not isinstance(model, nn.Module):
        remedy = f"an instance, {model.__name__}(...)" if isinstance(model, type) else "an nn.Module"
        raise TypeError(f"model is {model!r}; pass {remedy}.")
    if not isinstance(recipe, Recipe):
        remedy = "pass a Recipe, such as recipes.maml(steps=5)"
        if isinstance(recipe, Adapter):
            remedy = f"pass Recipe({recipe!r})"
        elif isfunction(recipe):
            remedy = f"call it, as in recipes.{recipe.__name__}()"
        raise TypeError(f"recipe is {recipe!r}; {remedy}.")
    if engine is not None and not isinstance(engine, Engine):
        raise TypeError(f"engine={engine!r}; pass an engine object, such as engines.Vmap(), or None.")
    if isinstance(episodes, Mapping):
        episodes = {name: as_episode(episode, name) for name, episode in episodes.items()}
        if engine is not None and not isinstance(engine, Auto | Loop):
            raise ValueError(
                f"engine={engine!r}: named tasks differ in shape and run one by one by plain autograd; pass"
                " engine=Loop(), or None."
            )
    else:
        episodes = as_episode(episodes)
    _check_losses(loss, episodes)
    _check_episodes(model, recipe.adapter, episodes, loss)
    return episodes


def check_features(recipe: Recipe, episodes: Any) -> None:
    """Reject gradients at features, `recipe.at`, where tasks do not share an input."""
    if recipe.at is not None and not isinstance(episodes, Mapping):
        raise ValueError(
            f"at={recipe.at!r} is for named tasks that share one input, given as a dict of episodes; each"
            " task of a meta-batch has inputs of its own, so use at=None."
        )


def _check_losses(loss: Any, episodes: Any) -> None:
    """Reject what is no loss: a class, or a module with parameters, which nothing would train."""
    losses = loss if isinstance(loss, Mapping) else {None: loss}
    for name, one in losses.items():
        what = "loss" if name is None else f"the loss of task {name!r}"
        if isinstance(one, type):
            raise TypeError(f"{what} is the class {one.__name__}; pass an instance, {one.__name__}().")
        if not callable(one):
            raise TypeError(f"{what} is {one!r}; pass a function of (output, y).")
        if getattr(one, "reduction", "mean") == "none":
            raise ValueError(
                f"{what} is {one!r}, which returns one value for each example; the loss of a task is a"
                " scalar: use reduction='mean'."
            )
        learned = (
            [n for n, p in one.named_parameters() if p.requires_grad] if isinstance(one, nn.Module) else []
        )
        if learned:
            raise ValueError(
                f"{what} is a {type(one).__name__} with parameters of its own ({', '.join(learned[:5])}),"
                " whose gradient meta_backward does not compute; make them parameters of the model, which"
                " returns them with its output, or freeze them with requires_grad_(False)."
            )


def _check_episodes(model: nn.Module, adapter: Adapter, episodes: Any, loss: Any) -> None:
    """Reject episodes, or an adapter, that cannot work with the model."""
    if not isinstance(episodes, Mapping):
        if isinstance(loss, Mapping):
            raise ValueError("a dict of losses needs a dict of episodes, one for each named task.")
        episodes.check()
        adapter.check(model, episodes.task)
        return
    if not episodes:
        raise ValueError("the dict of episodes is empty; give at least one named task.")
    if not isinstance(loss, Mapping) or set(episodes) - set(loss):
        given = sorted(loss) if isinstance(loss, Mapping) else "one loss for all"
        missing = sorted(set(episodes) - set(loss)) if isinstance(loss, Mapping) else sorted(episodes)
        raise ValueError(f"no loss for tasks {missing}; loss must be a dict by task name, not {given}.")
    for name, episode in episodes.items():
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
            " metamtl.task.masked makes one, would be NaN."
        )
    alone = dict(grads.adapter_params)
    for name, by_task in grads.task_specific.items():
        alone |= {f"{name} (task {task})": gradient for task, gradient in by_task.items()}
    if _finite_sum(grads.losses, *grads.shared.values(), *alone.values()):
        return
    bad_loss = ~torch.isfinite(grads.losses)
    bad_row = torch.zeros_like(bad_loss)
    for rows in grads.shared.values():
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
    support, ids = index_task((episodes.support, episodes.task), task)
    support = Batch(*support)
    with torch.no_grad():
        for step, params in enumerate(adapter.path(model, support, loss, task=ids)):
            value = loss(forward(model, params, support.x), support.y)
            if not torch.isfinite(value):
                return f" Task {task}: the support loss is {float(value)} after {step} inner steps."
    return f" Task {task}: the support loss stays finite in every inner step; the query set does not."
