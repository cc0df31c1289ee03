"""Baselines for a model that was trained without episodes, and transductive methods."""

from __future__ import annotations

from collections.abc import Iterable

from ..adapters import TIM, Chain, Gradient, LaplacianShot, Logistic, TransductiveFineTuning, Zeros
from ..aggregators import Aggregator
from ..functional import Features
from ..objectives import Objective, query_loss
from ..rules import Rule
from .base import Prefixes, Rate, Recipe, build


def fine_tuning(
    steps: int = 50,
    lr: Rate = 0.1,
    *,
    adapts: Prefixes | None = None,
    head: str | Iterable[str] = "head",
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """Fine-tuning: a new head, zero at the start, and K gradient steps on the support set.

    With `adapts="head"`, the baseline of Chen et al. 2019, https://arxiv.org/abs/1904.04232. Inner
    gradients are constants for the outer loop.
    """
    steps_on_support = Gradient(steps, lr, adapts, "first_order", rule=rule)
    return build(Chain(Zeros(head), steps_on_support), aggregator, objective, layer)


def frozen_logistic(
    features: Features = "body",
    *,
    ways: int | None = None,
    penalty: float = 0.04,
    normalize: bool = True,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """Logistic regression on l2-normalized features, with a fixed penalty (Tian et al. 2020).

    https://arxiv.org/abs/2003.11539. For S support examples, scikit-learn's `C` is `1 / (S penalty)`. For
    the test of a model that was trained in another way; `logistic` learns the penalty.
    """
    adapter = Logistic(features, ways=ways, penalty=penalty, learn_penalty=False, normalize=normalize)
    return build(adapter, aggregator, objective, layer)


def tim(
    features: Features = "body",
    *,
    ways: int | None = None,
    steps: int = 20,
    lr: float = 0.1,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """TIM: mutual information of query features and predictions (Boudiaf et al. 2020); transductive."""
    return build(TIM(features, ways=ways, steps=steps, lr=lr), aggregator, objective, layer)


def laplacian_shot(
    features: Features = "body",
    *,
    ways: int | None = None,
    weight: float = 1.0,
    neighbors: int = 3,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """LaplacianShot: class means and agreement of neighbors (Ziko et al. 2020); transductive."""
    adapter = LaplacianShot(features, ways=ways, weight=weight, neighbors=neighbors)
    return build(adapter, aggregator, objective, layer)


def transductive_fine_tuning(
    steps: int = 5,
    lr: float = 0.01,
    *,
    adapts: Prefixes | None = None,
    weight: float = 1.0,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """Fine-tuning on support labels and the entropy of query predictions (Dhillon et al. 2020)."""
    adapter = TransductiveFineTuning(steps, lr, adapts, weight=weight)
    return build(adapter, aggregator, objective, layer)
