"""Checks of the arguments of an analysis, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..adapters import Checkpointed, FirstOrder, Gradient, Implicit, Truncated, Unrolled
from ..engines import Engine, Sharded
from ..episode import Episode
from ..functional import trainable
from ..losses import Loss
from ..recipes import Recipe
from ..validation import check_call, check_features

Episodes = Episode | Mapping[str, Episode]
Losses = Loss | Mapping[str, Loss]


def check_analysis(
    model: Any, recipe: Any, episodes: Any, loss: Any, engine: Engine | None = None, *, least: int = 1
) -> Any:
    """Check the arguments of an analysis; return the episodes as `Episode` objects."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "this needs gradients, but torch.inference_mode() records none; call it outside."
        )
    episodes = check_call(model, recipe, episodes, loss, engine)
    check_features(recipe, episodes)
    if isinstance(engine, Sharded) and isinstance(episodes, Mapping):
        raise ValueError(
            f"engine={engine!r}: an analysis of named tasks runs in one process, on all of their examples;"
            " pass engine=None."
        )
    if not trainable(model):
        raise ValueError(f"{type(model).__name__} has no trainable parameter; call requires_grad_(True).")
    count = len(episodes) if isinstance(episodes, Mapping) else episodes.num_tasks
    if count < least:
        raise ValueError(
            f"the episodes have {count} task, but this compares tasks; pass at least {least}, in one"
            " Episode with a leading task axis or in a dict of named tasks."
        )
    return episodes


def check_depends(value: Tensor, name: str) -> None:
    """Raise an error if the objective of a task has no gradient."""
    if not value.requires_grad:
        raise ValueError(
            f"the objective of task {name!r} depends on no trainable parameter; look for a detach(), an"
            " argmax or an integer in the computation of its loss."
        )


def smooth(recipe: Recipe, order: int) -> Recipe:
    """The recipe with inner loops that can be differentiated `order` times, with the same values.

    Raises:
        ValueError: `order` is 2, and the gradient of an inner loop is not the gradient of any function.
    """
    loops = [part for part in recipe.adapter.modules() if isinstance(part, Gradient)]
    for loop in loops:
        if order > 1 and loop.steps and isinstance(loop.differentiation, (FirstOrder, Truncated, Implicit)):
            raise ValueError(
                f"second derivatives need the exact gradient, but the adapter has {loop.differentiation},"
                " whose result is not the gradient of a function and has no Hessian; pass a recipe with"
                " differentiation='exact'."
            )
    if not any(isinstance(loop.differentiation, Checkpointed) for loop in loops):
        return recipe
    adapter = deepcopy(recipe.adapter)
    for part in adapter.modules():
        if isinstance(part, Gradient) and isinstance(part.differentiation, Checkpointed):
            part.differentiation = Unrolled()
    return replace(recipe, adapter=adapter)


def task_names(episodes: Episodes) -> tuple[str, ...]:
    """The keys of a dict; of a meta-batch its ids `[T]` if no two are equal, else the positions."""
    if isinstance(episodes, Mapping):
        return tuple(episodes)
    ids = episodes.task
    if ids is not None and ids.dim() == 1 and len(set(ids.tolist())) == len(ids):
        return tuple(map(str, ids.tolist()))
    return tuple(map(str, range(episodes.num_tasks)))


def check_lr(lr: Any) -> float:
    """Reject a learning rate that is not a number above zero."""
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < float("inf"):
        raise ValueError(f"lr={lr!r}: pass the learning rate of the step, a number above 0.")
    return float(lr)
