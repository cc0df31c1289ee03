"""How good is a recipe on tasks: adapt, measure, and say how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .checks import check_episodes
from .engines import Engine, TaskFunction, Vmap
from .episode import Episode
from .estimate import Estimate
from .functional import Params, trainable
from .objectives import query_loss
from .recipes import Recipe
from .task import Loss, Metric

Metrics = Mapping[str, Metric]
CHUNK_INPUTS = 160_000  # input numbers of one vmapped chunk of tasks


@overload
def evaluate(
    model: nn.Module, recipe: Recipe, episodes: Episode, loss: Loss, *, engine: Engine | None = None
) -> Estimate: ...
@overload
def evaluate(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode,
    loss: Loss,
    *,
    metrics: Metrics,
    engine: Engine | None = None,
) -> dict[str, Estimate]: ...
@overload
def evaluate(
    model: nn.Module,
    recipe: Recipe,
    episodes: Mapping[str, Episode],
    loss: Mapping[str, Loss],
    *,
    metrics: Mapping[str, Metrics] | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]: ...
def evaluate(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode | Mapping[str, Episode],
    loss: Any,
    *,
    metrics: Any = None,
    engine: Engine | None = None,
) -> Any:
    """Adapt to each task's support set and measure on its query set. No graph is built.

    Args:
        model: any module.
        recipe: its adapter is what is tested.
        episodes: test tasks; alike, or a dict of named ones.
        loss: the task's loss, or a dict of losses by name.
        metrics: what to measure, `{name: Metric}` (for named tasks a dict of those by task); the loss,
            where None.
        engine: as in `meta_backward`; where None, `Vmap` over as many tasks at a time as fit the caches.

    Returns:
        Without `metrics` the `Estimate` of the loss, with them a dict of Estimates; for named tasks a dict
        by task of either. An interval is over tasks; for a named task, over its query examples, or
        not known (NaN) for a measure that has one value for the whole set, as a loss has.
    """
    check_episodes(model, recipe.adapter, episodes, loss)
    if isinstance(episodes, Mapping):
        unmeasured = [] if metrics is None else sorted(set(episodes) - set(metrics))
        if unmeasured:
            raise ValueError(
                f"no metrics for tasks {unmeasured}; there are some for {', '.join(sorted(metrics))}."
            )
        return {
            name: _named(model, recipe, episode, loss[name], metrics and metrics[name], name)
            for name, episode in episodes.items()
        }
    measures = {"loss": Metric(loss, higher_is_better=False)} if metrics is None else metrics

    def only_last(function: TaskFunction, data: Any) -> list[Params]:
        return [function.adapt(trainable(model), {}, data)]

    (last,) = _stages(model, recipe, episodes, loss, measures, engine, only_last)
    return last["loss"] if metrics is None else last


def adaptation_curve(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode,
    loss: Loss,
    *,
    metrics: Metrics,
    engine: Engine | None = None,
) -> list[dict[str, Estimate]]:
    """As `evaluate`, after every stage of adaptation: for K gradient steps, K + 1 measurements."""
    check_episodes(model, recipe.adapter, episodes, loss)

    def every(function: TaskFunction, data: Any) -> list[Params]:
        return list(function.path(trainable(model), data))

    return _stages(model, recipe, episodes, loss, metrics, engine, every)


def _stages(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode,
    loss: Loss,
    metrics: Metrics,
    engine: Engine | None,
    stages: Callable[[TaskFunction, Any], list[Params]],
) -> list[dict[str, Estimate]]:
    engine = Vmap(_chunk(episodes)) if engine is None else engine
    engine.check(model)
    function = TaskFunction(model, recipe.adapter, query_loss, loss, episodes)

    def one_task(data: Any) -> list[dict[str, Tensor]]:
        _, (x, y), _ = data
        outputs = [function.output(params, x) for params in stages(function, data)]
        return [{name: metric(output, y).mean() for name, metric in metrics.items()} for output in outputs]

    return [
        {
            name: Estimate.of(values, higher_is_better=metrics[name].higher_is_better)
            for name, values in stage.items()
        }
        for stage in engine.map(one_task, function.data)
    ]


def _chunk(episodes: Episode) -> int:
    """Tasks at a time: more are slower once an activation outgrows what the allocator keeps at hand."""
    numbers = sum(leaf[0].numel() for leaf in tree_leaves(episodes.query[0]) if isinstance(leaf, Tensor))
    return max(1, min(episodes.num_tasks, CHUNK_INPUTS // max(numbers, 1)))


def _named(
    model: nn.Module, recipe: Recipe, episode: Episode, loss: Loss, metrics: Metrics | None, name: str
) -> Any:
    """The Estimates of one named task, over its query examples."""
    measures = {"loss": Metric(loss, higher_is_better=False)} if metrics is None else metrics
    function = TaskFunction(model, recipe.adapter, query_loss, loss, episode, name)
    with torch.no_grad():
        output = function.output(function.adapt(trainable(model), {}, function.data), episode.query[0])
        found = {
            key: Estimate.of(metric(output, episode.query[1]), higher_is_better=metric.higher_is_better)
            for key, metric in measures.items()
        }
    return found["loss"] if metrics is None else found
