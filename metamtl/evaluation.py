"""How good is a recipe on tasks: adapt, measure, and say how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import nn

from .checks import check_episodes
from .engines import Auto, Engine, Evaluation, TaskFunction
from .engines.task import matched
from .episode import Episode
from .estimate import Estimate
from .functional import trainable
from .objectives import query_loss
from .recipes import Recipe
from .task import Loss, Metric

Metrics = Mapping[str, Metric]
DEFAULT = Auto()  # one for all calls, because it remembers


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
        engine: as in `meta_backward`; where None, `Auto`: as many tasks at a time as fit the caches, and
            compiled once evaluations of the same kind have taken as long as that takes.

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
    measures = {"loss": Metric(matched(loss), higher_is_better=False)} if metrics is None else metrics

    (last,) = _stages(model, recipe, episodes, loss, measures, engine, every=False)
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
    return _stages(model, recipe, episodes, loss, metrics, engine, every=True)


def _stages(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode,
    loss: Loss,
    metrics: Metrics,
    engine: Engine | None,
    *,
    every: bool,
) -> list[dict[str, Estimate]]:
    engine = DEFAULT if engine is None else engine
    engine.check(model)
    function = TaskFunction(model, recipe.adapter, query_loss, loss, episodes)
    return [
        {
            name: Estimate.of(values, higher_is_better=metrics[name].higher_is_better)
            for name, values in stage.items()
        }
        for stage in engine.map(Evaluation(function, metrics, every=every), function.data)
    ]


def _named(
    model: nn.Module, recipe: Recipe, episode: Episode, loss: Loss, metrics: Metrics | None, name: str
) -> Any:
    """The Estimates of one named task, over its query examples."""
    measures = {"loss": Metric(matched(loss), higher_is_better=False)} if metrics is None else metrics
    function = TaskFunction(model, recipe.adapter, query_loss, loss, episode, name)
    with torch.no_grad():
        output = function.output(function.adapt(trainable(model), {}, function.data), episode.query[0])
        found = {
            key: Estimate.of(metric(output, episode.query[1]), higher_is_better=metric.higher_is_better)
            for key, metric in measures.items()
        }
    return found["loss"] if metrics is None else found
