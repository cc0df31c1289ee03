"""Checks of arguments before anything is computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import isfunction
from typing import Any

from torch import nn

from ..adapters import Adapter, Shared
from ..engines import Auto, Engine, Loop, Sharded
from ..episode import as_episode
from ..meta_batch import MetaBatch
from ..recipes import Recipe

REPLICAS, PARTS = "synchronizes replicas in backward()", "gathers parameters in forward() and backward()"
WRAPPERS = {
    "DistributedDataParallel": REPLICAS,
    "DataParallel": REPLICAS,
    "FullyShardedDataParallel": PARTS,
    "FSDPModule": PARTS,
}


def check_call(model: Any, recipe: Any, episodes: Any, loss: Any, engine: Any) -> Any:
    """Reject arguments that cannot work together; return the episodes as `Episode` objects."""
    _check_unwrapped(model)
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
        inner = engine.inner if isinstance(engine, Sharded) else engine
        if inner is not None and not isinstance(inner, Auto | Loop):
            raise ValueError(
                f"engine={engine!r}: named tasks differ in shape and run one by one with plain autograd;"
                " pass engine=Loop(), Sharded(), or None."
            )
    else:
        episodes = as_episode(episodes)
    _check_losses(loss, episodes)
    _check_episodes(model, recipe.adapter, episodes, loss)
    return episodes


def check_tasks(model: Any, recipe: Any, episodes: Any, loss: Any, engine: Any) -> Any:
    """`check_call` for episodes or a list of them; return a `MetaBatch` or a dict of named tasks."""
    if not isinstance(episodes, list):
        episodes = check_call(model, recipe, episodes, loss, engine)
        return episodes if isinstance(episodes, Mapping) else MetaBatch.of(episodes)
    if not episodes:
        raise ValueError("the list of episodes is empty; pass at least one task.")
    return MetaBatch.of([check_call(model, recipe, episode, loss, engine) for episode in episodes])


def _check_unwrapped(model: Any) -> None:
    """Reject a model that is wrapped, or has a part that is wrapped, for training in several processes."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    classes = {base.__name__ for cls in {type(module) for module in modules} for base in cls.__mro__}
    if wrappers := sorted(classes & WRAPPERS.keys()):
        raise TypeError(
            f"the model is wrapped in {wrappers[0]}, which {WRAPPERS[wrappers[0]]} but not in"
            " meta_backward, so that the processes would diverge; pass the module itself, model.module, and"
            " engine=engines.Sharded()."
        )


def check_features(recipe: Recipe, episodes: Any) -> None:
    """Reject `recipe.layer`, gradients at features, if the tasks do not share an input."""
    if recipe.layer is not None and not isinstance(episodes, Mapping):
        raise ValueError(
            f"layer={recipe.layer!r} is for named tasks that share one input, passed as a dict of episodes;"
            " each task of a meta-batch has its own inputs, so use layer=None."
        )


def _check_losses(loss: Any, episodes: Any) -> None:
    """Reject a class, and a module with parameters, which would not be trained."""
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
        params = (
            [n for n, p in one.named_parameters() if p.requires_grad] if isinstance(one, nn.Module) else []
        )
        if params:
            raise ValueError(
                f"{what} is a {type(one).__name__} with parameters of its own ({', '.join(params[:5])}),"
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
        raise ValueError("the dict of episodes is empty; pass at least one named task.")
    if not isinstance(loss, Mapping) or set(episodes) - set(loss):
        names = sorted(loss) if isinstance(loss, Mapping) else "one loss for all"
        missing = sorted(set(episodes) - set(loss)) if isinstance(loss, Mapping) else sorted(episodes)
        raise ValueError(f"no loss for tasks {missing}; loss must be a dict by task name, not {names}.")
    for name, episode in episodes.items():
        episode.check(named=name)
    adapted = [name for name, episode in episodes.items() if episode.support is not None]
    if not adapted and not isinstance(adapter, Shared):
        raise ValueError(
            f"{type(adapter).__name__} adapts to support sets, but none of the tasks"
            f" {', '.join(map(repr, episodes))} has one; add support sets, or use Shared()."
        )
    for name in adapted:
        adapter.check(model, name)
    _check_takes_task(model)


def _check_takes_task(model: nn.Module) -> None:
    """Check that the model takes the argument `task=`, the name of the task."""
    method = getattr(model.forward, "__func__", None)
    # Cache only methods of classes: a function on an instance may reference the model and keep it alive.
    cacheable = method is not None and "forward" not in vars(model)
    if not (_takes_task(method) if cacheable else _takes_task.__wrapped__(model.forward)):
        raise ValueError(
            f"{type(model).__name__}.forward takes no argument task=, which selects the head of a named"
            " task; add one, or use nets.named_heads(backbone, outputs)."
        )


@lru_cache(maxsize=128)
def _takes_task(forward: Callable[..., Any]) -> bool:
    parameters = inspect.signature(forward).parameters
    return "task" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
