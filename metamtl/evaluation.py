"""How good is a recipe on tasks: adapt, measure, and say how sure that is."""

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
DEFAULT = Auto()  # one for all calls, because it remembers what is fast


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

    Metrics are computed from the outputs of the whole meta-batch, outside of any transform, so any function
    of tensors can be one.

    Args:
        model: any module.
        recipe: its adapter is what is tested.
        episodes: test tasks; a meta-batch, or a dict of named ones.
        loss: the task's loss, or a dict of losses by name.
        metrics: what to measure, `{name: Metric}` (for named tasks a dict of those by task); if None, the
            loss.
        engine: as in `meta_backward`; if None, `Auto()`: as many tasks at a time as fit the caches, and
            compiled once evaluations of the same kind have taken as long as that takes.

    Returns:
        Without `metrics` the `Estimate` of the loss, with them a dict of Estimates; for named tasks a dict
        by task of either. An interval is over tasks; for a named task, over its query examples, or
        unknown (NaN) for a measure that has one value for the whole set, as a loss has.

    Raises:
        TypeError, ValueError: arguments that cannot work; outputs that are not finite; a task without a
            labeled query example.
    """
    episodes = check_call(model, recipe, episodes, loss, engine)
    if not isinstance(episodes, Mapping):
        (last,) = _stages(model, recipe, episodes, loss, metrics, engine, every=False)
        return last["loss"] if metrics is None else last
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
    """As `evaluate`, after every stage of adaptation: for K gradient steps, K + 1 measurements."""
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
    with torch.inference_mode(False):  # adaptation takes gradients
        episodes = episodes.map(_recordable)
        problem = TaskProblem.of(model, recipe.adapter, query_loss, checked_loss(loss, episodes), episodes)
        data = (episodes.support, episodes.query, episodes.task)
        stages = engine.outputs(problem, data, every=every)
    measures = {"loss": Metric(problem.loss, higher_is_better=False)} if metrics is None else metrics
    return [score_tasks(measures, outputs, episodes.query[1]) for outputs in stages]


def _named(
    model: nn.Module, recipe: Recipe, episode: Episode, loss: Loss, metrics: Metrics | None, name: str
) -> Any:
    """The Estimates of one named task, over its query examples."""
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
    """A tensor of which autograd can record operations, even if inference mode made it."""
    return tensor.clone() if tensor.is_inference() else tensor
