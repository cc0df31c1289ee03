"""Evaluate a recipe on tasks: adapt, measure, and estimate the mean with its confidence interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from .engines import Auto, Engine, TaskProblem, example_exchange
from .episode import Episode
from .estimate import Estimate
from .functional import trainable
from .functional.labels import is_empty
from .losses import Loss
from .meta_batch import MetaBatch
from .metrics import Metric
from .metrics.scoring import check_metrics, score_named, score_tasks
from .objectives import query_loss
from .recipes import Recipe
from .validation import check_tasks, checked_loss

Metrics = Mapping[str, Metric]
DEFAULT = Auto()  # shared by all calls, because it stores which engine is fastest


@overload
def evaluate(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode | list[Episode],
    loss: Loss,
    *,
    engine: Engine | None = None,
) -> Estimate: ...
@overload
def evaluate(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode | list[Episode],
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
    episodes: Episode | list[Episode] | Mapping[str, Episode],
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
        episodes: test tasks, as in `meta_backward`.
        loss: the loss of the tasks, or a dict of losses by task name.
        metrics: `{name: Metric}`, for named tasks a dict of such dicts by task; if None, the loss is
            measured.
        engine: as in `meta_backward`; if None, `Auto()`, which runs tasks in chunks that fit the caches
            and compiles once evaluations of the same kind have taken as long as compiling takes. With
            `Sharded()` and named tasks, every process passes its own examples, and the metrics are computed
            from the outputs for the examples of all processes.

    Returns:
        The `Estimate` of the loss, or with `metrics` a dict of Estimates; for named tasks a dict of either
        by task. The confidence interval is over tasks. For a named task it is over query examples, or NaN
        for a measure with one value for the whole set, such as a loss.

    Raises:
        TypeError, ValueError: arguments are invalid, outputs are not finite, or a task has no labeled query
            example.
    """
    exchange = example_exchange(engine, model, episodes)
    with exchange.together() as agreement:
        checked = check_tasks(model, recipe, episodes, loss, engine)
        if isinstance(checked, Mapping):
            agreement["tasks"] = list(checked)
            _check_measured(checked, metrics)
            losses = {name: checked_loss(loss[name], episode) for name, episode in checked.items()}
            outputs = {name: _output(model, recipe, checked[name], losses[name], name) for name in checked}
    if not isinstance(checked, Mapping):
        (estimates,) = _stages(model, recipe, checked, loss, metrics, engine, every=False)
        return estimates["loss"] if metrics is None else estimates
    found = {}
    for name, (output, y) in exchange.join(outputs).items():
        measures = (
            {"loss": Metric(losses[name], higher_is_better=False)} if metrics is None else metrics[name]
        )
        estimates = score_named(measures, output, y, name)
        found[name] = estimates["loss"] if metrics is None else estimates
    return found


def adaptation_curve(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode | list[Episode],
    loss: Loss,
    *,
    metrics: Metrics,
    engine: Engine | None = None,
) -> list[dict[str, Estimate]]:
    """Evaluate after every stage of adaptation: K gradient steps give K + 1 results of `evaluate`."""
    checked = check_tasks(model, recipe, episodes, loss, engine)
    return _stages(model, recipe, checked, loss, metrics, engine, every=True)


def _stages(
    model: nn.Module,
    recipe: Recipe,
    episodes: MetaBatch,
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
    scores = []  # by group, then by stage
    for group, positions in zip(episodes.groups, episodes.positions):
        if group.num_tasks and is_empty(group[0].query):
            raise ValueError(
                "the query set is empty (queries=0), so there is nothing to measure; draw the tasks of an"
                " evaluation with at least one query."
            )
        with torch.inference_mode(False):  # adaptation needs gradients
            episode = group.map(_recordable)
            problem = TaskProblem.of(
                model, recipe.adapter, query_loss, checked_loss(loss, episode), episode
            )
            data = (episode.support, episode.query, episode.task)
            stages = engine.outputs(problem, data, every=every)
        measures = {"loss": Metric(problem.loss, higher_is_better=False)} if metrics is None else metrics
        scores.append([score_tasks(measures, outputs, group.query[1], positions) for outputs in stages])
    order = torch.tensor([position for positions in episodes.positions for position in positions]).argsort()
    return [
        {name: _joined([group[name] for group in stage], measures[name], order) for name in measures}
        for stage in zip(*scores, strict=True)
    ]


def _joined(groups: list[Estimate], metric: Metric, order: Tensor) -> Estimate:
    """The estimate over the tasks of all groups, in the order of the meta-batch."""
    return Estimate.of(
        torch.cat([estimate.values for estimate in groups])[order],
        higher_is_better=metric.higher_is_better,
        num_missing=sum(estimate.num_missing for estimate in groups),
    )


def _check_measured(episodes: Mapping[str, Episode], metrics: Any) -> None:
    """Check that every named task has metrics, unless the losses are measured."""
    if metrics is None:
        return
    unmeasured = sorted(set(episodes) - set(metrics))
    if unmeasured:
        raise ValueError(
            f"no metrics for tasks {unmeasured}; there are some for {', '.join(sorted(metrics))}."
        )
    for name in episodes:
        check_metrics(metrics[name], name)


def _output(model: nn.Module, recipe: Recipe, episode: Episode, loss: Loss, name: str) -> Any:
    """The output and the labels of the query set of one named task; None without an example."""
    if is_empty(episode.query):
        return None
    with torch.inference_mode(False), torch.no_grad():
        episode = episode.map(_recordable)
        problem = TaskProblem.of(model, recipe.adapter, query_loss, loss, episode, name)
        adapted = problem.adapt(trainable(model), {}, episode.support, episode.task)
        return problem.output(adapted, episode.query[0]), episode.query[1]


def _recordable(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy that autograd can record if it was created in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor
