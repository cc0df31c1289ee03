"""Select an adaptation strategy on validation tasks and evaluate it, for few-shot and named tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from metamtl import Batch, Episode, Estimate, Recipe, adaptation_curve, delta_m, engines, evaluate, recipes
from metamtl.nets import batchnorm_statistics, with_batchnorm
from metamtl.tasks import LabeledTasks, TaskMixture

from .nearest import hint
from .targets import OptionError

Reference = Mapping[str, float]  # {"task/metric": value of a single-task model}


class Choice(NamedTuple):
    """An adaptation strategy, its number of steps, its value of the selection metric, and all metrics."""

    strategy: str
    stage: int
    estimate: Estimate
    higher_is_better: bool
    metrics: dict[str, Estimate]

    def better_than(self, other: Choice) -> bool:
        """Return whether this choice has a better value than `other`."""
        gap = self.estimate.mean - other.estimate.mean
        return gap > 0 if self.higher_is_better else gap < 0


def choose(
    model: nn.Module,
    strategies: Mapping[str, Recipe],
    family: Any,
    episodes: Any,
    metric: str,
    reference: Reference | None = None,
    engine: engines.Engine | None = None,
) -> Choice:
    """Select the best strategy and number of steps on these tasks.

    A strategy that diverges on a task is left out.

    Raises:
        FloatingPointError: every strategy diverges.
    """
    best: Choice | None = None
    failure: FloatingPointError | None = None
    for strategy, recipe in strategies.items():
        try:
            stages = _stages(model, recipe, family, episodes, reference, engine)
        except FloatingPointError as error:
            failure = error
            continue
        for stage, metrics in enumerate(stages):
            choice = Choice(strategy, stage, metrics[metric], higher(family, metric), metrics)
            if best is None or choice.better_than(best):
                best = choice
    if best is None:
        assert failure is not None
        raise failure
    return best


def measure(
    model: nn.Module,
    recipe: Recipe,
    stage: int,
    family: Any,
    episodes: Any,
    reference: Reference | None = None,
    engine: engines.Engine | None = None,
) -> tuple[dict[str, Estimate], list[dict[str, Estimate]]]:
    """Every metric after `stage` steps (-1: after all), and after every number of steps."""
    curve = _stages(model, recipe, family, episodes, reference, engine)
    return curve[stage], curve


def batchnorm_kinds(model: nn.Module) -> dict[str, nn.Module]:
    """The model with inductive and with transductive BatchNorm, by kind; empty without BatchNorm.

    The weights are the same. Inductive are the statistics of the support set, or stored ones if the model
    uses them. A scale and shift for each step (`per_step`) has only the transductive kind.
    """
    statistics = batchnorm_statistics(model)
    if statistics == "no BatchNorm":
        return {}
    if "transductive" not in statistics:
        return {"inductive": model, "transductive": with_batchnorm(model, "transductive")}
    if "per_step" in statistics:
        return {"transductive": model}
    return {"inductive": with_batchnorm(model, "support"), "transductive": model}


def measure_batchnorm(
    model: nn.Module, on_new: dict[str, Estimate], *args: Any
) -> dict[str, dict[str, Estimate] | None]:
    """Every metric with BatchNorm of each kind; None if the adaptation diverges with it.

    `on_new` has the metrics of the model itself; the other arguments are those of `measure`.
    """
    found: dict[str, dict[str, Estimate] | None] = {}
    for kind, other in batchnorm_kinds(model).items():
        try:
            found[kind] = on_new if other is model else measure(other, *args)[0]
        except FloatingPointError:
            found[kind] = None
    return found


def as_dicts(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """The estimates for a result file."""
    return {name: estimate.as_dict() for name, estimate in estimates.items()}


def _stages(
    model: nn.Module,
    recipe: Recipe,
    family: Any,
    episodes: Any,
    reference: Reference | None,
    engine: engines.Engine | None,
) -> list[dict[str, Estimate]]:
    parts = {"metrics": family.metrics, "engine": engine}
    if isinstance(episodes, Mapping):
        flat = _flat(evaluate(model, recipe, episodes, family.loss, **parts), family.metrics)
        if reference:
            means = {name: flat[name].mean for name in reference}
            change = delta_m(means, reference, {name: higher(family, name) for name in reference})
            flat["delta_m"] = Estimate.of(torch.tensor(change), higher_is_better=True)
        return [flat]
    return adaptation_curve(model, recipe, episodes, family.loss, **parts)


def _flat(
    estimates_by_task: Mapping[str, Mapping[str, Estimate]], metrics: Mapping[str, Any]
) -> dict[str, Estimate]:
    """Flatten `{task: {metric: ...}}` to `{"task/metric": ...}`; add the mean of each metric over tasks."""
    means: dict[str, list[float]] = {}
    higher: dict[str, bool] = {}
    per_task: dict[str, Estimate] = {}
    for task, estimates in estimates_by_task.items():
        for name, estimate in estimates.items():
            per_task[f"{task}/{name}"] = estimate
            means.setdefault(name, []).append(estimate.mean)
            higher[name] = metrics[task][name].higher_is_better
    over_tasks = {
        name: Estimate.of(torch.tensor(values), higher_is_better=higher[name])
        for name, values in means.items()
    }
    return {**over_tasks, **per_task}


def higher(family: Any, metric: str) -> bool:
    """Return whether higher values of this metric are better.

    Named tasks have the metrics `"task/metric"`, `"metric"` (the mean over the tasks that have it), and
    `"delta_m"`.

    Raises:
        ValueError: the tasks have no such metric.
    """
    directions: dict[str, bool] = {}
    for name, value in family.metrics.items():
        if isinstance(value, Mapping):
            for key, task_metric in value.items():
                directions.setdefault(key, task_metric.higher_is_better)
                directions[f"{name}/{key}"] = task_metric.higher_is_better
            directions["delta_m"] = True
        else:
            directions[name] = value.higher_is_better
    if metric not in directions:
        raise OptionError(
            f"metric={metric}: {type(family).__name__} has no such metric; it has {', '.join(directions)};"
            f" {hint(metric, directions)}"
        )
    return directions[metric]


def trivial(
    net: nn.Module, recipe: Recipe, family: Any, train: Any, new: Any
) -> dict[str, dict[str, float]]:
    """Evaluate the trivial baseline on the test episodes `new`.

    A few-shot task is adapted with its support set. A named task has none: `train` examples are used
    instead, and its test examples are split into twenty tasks.
    """
    if not isinstance(new, Mapping):
        estimates = evaluate(net, recipe, new, family.loss, metrics=family.metrics)
        return {name: estimate.as_dict() for name, estimate in estimates.items()}
    flat = _flat(
        {
            name: evaluate(
                net,
                recipes.protonet(episode.ways),
                _few_shot(train[name], episode),
                family.loss[name],
                metrics=family.metrics[name],
            )
            for name, episode in new.items()
        },
        family.metrics,
    )
    return {name: estimate.as_dict() for name, estimate in flat.items()}


def _few_shot(train: Episode, new: Episode, chunks: int = 20) -> Episode:
    support = [part.expand(chunks, *part.shape) for part in train.query]
    query = [part[: len(part) // chunks * chunks].unflatten(0, (chunks, -1)) for part in new.query]
    return Episode(Batch(*support), Batch(*query))


def sizes(tasks: Any) -> dict[str, int] | None:
    """Number of examples of every task; None if the tasks do not state it."""
    if isinstance(tasks, TaskMixture):
        parts = [sizes(source) for source in tasks.sources.values()]
        return None if None in parts else {task: n for part in parts if part for task, n in part.items()}
    return dict.fromkeys(tasks.tasks, len(tasks)) if isinstance(tasks, LabeledTasks) else None


def epochs(tasks: Any, steps: int, batch: int) -> dict[str, float] | None:
    """Passes over the examples of every task in `steps` steps; None if that is not a fixed number."""
    counts = sizes(tasks)
    if counts is None:
        return None
    if not isinstance(tasks, TaskMixture):
        return {task: steps * batch / count for task, count in counts.items()}
    if tasks.sampling != "all":
        return None
    return {
        task: steps * min(tasks.sizes.get(name, batch), counts[task]) / counts[task]
        for name, source in tasks.sources.items()
        for task in source.loss
    }
