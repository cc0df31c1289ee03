"""Choosing a way to adapt on validation tasks, and measuring with it, for both shapes of work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from metamtl import Batch, Episode, Estimate, Recipe, adaptation_curve, evaluate, recipes


class Choice(NamedTuple):
    """A way to adapt, after how many of its steps, and how good that was."""

    way: str
    stage: int
    estimate: Estimate
    higher_is_better: bool

    def better_than(self, other: Choice) -> bool:
        """Whether this one measured better."""
        gap = self.estimate.mean - other.estimate.mean
        return gap > 0 if self.higher_is_better else gap < 0


def choose(model: nn.Module, ways: Mapping[str, Recipe], family: Any, episodes: Any, metric: str) -> Choice:
    """The best of all ways and of all their steps on these tasks."""
    best: Choice | None = None
    for way, recipe in ways.items():
        for stage, found in enumerate(_stages(model, recipe, family, episodes)):
            choice = Choice(way, stage, found[metric], _higher(family, metric))
            if best is None or choice.better_than(best):
                best = choice
    assert best is not None
    return best


def measure(
    model: nn.Module, recipe: Recipe, stage: int, family: Any, episodes: Any
) -> tuple[dict[str, dict[str, float]], list[dict[str, dict[str, float]]]]:
    """Every metric after `stage` steps, and the whole curve over the steps."""
    stages = _stages(model, recipe, family, episodes)
    curve = [{name: found.as_dict() for name, found in entry.items()} for entry in stages]
    return curve[stage], curve


def _stages(model: nn.Module, recipe: Recipe, family: Any, episodes: Any) -> list[dict[str, Estimate]]:
    if isinstance(episodes, Mapping):
        found = evaluate(model, recipe, episodes, family.loss, metrics=family.metrics)
        return [_flat(found, family.metrics)]
    return adaptation_curve(model, recipe, episodes, family.loss, metrics=family.metrics)


def _flat(found: Mapping[str, Mapping[str, Estimate]], metrics: Mapping[str, Any]) -> dict[str, Estimate]:
    """`{task: {metric: ...}}` as `{"task/metric": ...}`, and each metric's mean over the tasks."""
    means: dict[str, list[float]] = {}
    higher: dict[str, bool] = {}
    each: dict[str, Estimate] = {}
    for task, estimates in found.items():
        for name, estimate in estimates.items():
            each[f"{task}/{name}"] = estimate
            means.setdefault(name, []).append(estimate.mean)
            higher[name] = metrics[task][name].higher_is_better
    over_tasks = {
        name: Estimate.of(torch.tensor(values), higher_is_better=higher[name])
        for name, values in means.items()
    }
    return {**over_tasks, **each}


def _higher(family: Any, metric: str) -> bool:
    metrics = family.metrics
    if metric not in metrics:  # named tasks have a dict of metrics each
        metrics = next(iter(metrics.values()))
    return metrics[metric].higher_is_better


def trivial(
    net: nn.Module, recipe: Recipe, family: Any, train: Any, new: Any
) -> dict[str, dict[str, float]]:
    """The trivial answer to the test episodes `new`.

    A few-shot task gives it its support set. A named task has none, so `train` examples stand in, and the
    test examples are cut into twenty tasks.
    """
    if not isinstance(new, Mapping):
        found = evaluate(net, recipe, new, family.loss, metrics=family.metrics)
        return {name: estimate.as_dict() for name, estimate in found.items()}
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
