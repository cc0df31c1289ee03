"""Evaluate a recipe on tasks: adapt, measure, and estimate the mean with its confidence interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from .engines import Auto, Engine, TaskProblem
from .episode import Episode
from .estimate import Estimate
from .functional import trainable
from .losses import Loss
from .metrics import Metric
from .metrics.scoring import check_metrics, score_named, score_tasks
from .objectives import query_loss
from .recipes import Recipe
from .validation import check_call, checked_loss

Metrics = Mapping[str, Metric]
DEFAULT = Auto()  # shared by all calls, because it stores which engine is fastest


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
    """Adapt to each task's support set and measure on its query set. No graph is recorded.

    Metrics are computed from the outputs of the whole meta-batch, outside of any torch.func transform, so
    any function of tensors can be a metric.

    Args:
        model: any module.
        recipe: the recipe whose adapter is evaluated.
        episodes: test tasks, as a meta-batch or a dict of named tasks.
        loss: the loss of the tasks, or a dict of losses by task name.
        metrics: `{name: Metric}`, for named tasks a dict of such dicts by task; if None, the loss is
            measured.
        engine: as in `meta_backward`; if None, `Auto()`, which runs tasks in chunks that fit the caches
            and compiles once evaluations of the same kind have taken as long as compiling takes.

    Returns:
        The `Estimate` of the loss, or with `metrics` a dict of Estimates; for named tasks a dict of either
        by task. The confidence interval is over tasks. For a named task it is over query examples, or NaN
        for a measure with one value for the whole set, such as a loss.

    Raises:
        TypeError, ValueError: arguments are invalid, outputs are not finite, or a task has no labeled query
            example.
    """
    episodes = check_call(model, recipe, episodes, loss, engine)
    if not isinstance(episodes, Mapping):
        (estimates,) = _stages(model, recipe, episodes, loss, metrics, engine, every=False)
        return estimates["loss"] if metrics is None else estimates
    unmeasured = [] if metrics is None else sorted(set(episodes) - set(metrics))
    if unmeasured:
        raise ValueError(
            f"no metrics for tasks {unmeasured}; there are some for {', '.join(sorted(metrics))}."
        )
    for name in episodes if metrics is not None else ():
        check_metrics(metrics[name], name)
    return {
        name: _named(model, recipe, episode, loss[name], metrics and metrics[name], name)
        for name, episode in episodes.items()
    }


def adaptation_curve(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode,
    loss: Loss,
    *,
    metrics: Metrics,
    engine: Engine | None = None,
) -> list[dict[str, Estimate]]:
    """Evaluate after every stage of adaptation: K gradient steps give K + 1 results of `evaluate`."""
    episodes = check_call(model, recipe, episodes, loss, engine)
    return _stages(model, recipe, episodes, loss, metrics, engine, every=True)


def _stages(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode,
    loss: Loss,
    metrics: Metrics | None,
    engine: Engine | None,
    *,
    every: bool,
) -> list[dict[str, Estimate]]:
    if metrics is not None:
        check_metrics(metrics)
    engine = DEFAULT if engine is None else engine
    engine.check(model)
    with torch.inference_mode(False):  # adaptation needs gradients
        episodes = episodes.map(_recordable)
        problem = TaskProblem.of(model, recipe.adapter, query_loss, checked_loss(loss, episodes), episodes)
        data = (episodes.support, episodes.query, episodes.task)
        stages = engine.outputs(problem, data, every=every)
    measures = {"loss": Metric(problem.loss, higher_is_better=False)} if metrics is None else metrics
    return [score_tasks(measures, outputs, episodes.query[1]) for outputs in stages]


def _named(
    model: nn.Module, recipe: Recipe, episode: Episode, loss: Loss, metrics: Metrics | None, name: str
) -> Any:
    """The Estimates of one named task over its query examples."""
    with torch.inference_mode(False), torch.no_grad():
        episode = episode.map(_recordable)
        problem = TaskProblem.of(
            model, recipe.adapter, query_loss, checked_loss(loss, episode), episode, name
        )
        adapted = problem.adapt(trainable(model), {}, episode.support, episode.task)
        output = problem.output(adapted, episode.query[0])
    measures = {"loss": Metric(problem.loss, higher_is_better=False)} if metrics is None else metrics
    estimates = score_named(measures, output, episode.query[1], name)
    return estimates["loss"] if metrics is None else estimates


def _recordable(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy that autograd can record if it was created in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor
