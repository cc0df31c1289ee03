"""Methods whose head is the solution of a convex problem on the support features."""

from __future__ import annotations

from ..adapters import SVM, Logistic, Ridge
from ..aggregators import Aggregator
from ..functional import Features
from ..objectives import Objective, query_loss
from .base import Recipe, build


def r2d2(
    features: Features = "body",
    *,
    ways: int | None = None,
    penalty: float = 1.0,
    scale: float = 1.0,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """R2D2: a ridge regression with a learned penalty and scale (Bertinetto et al. 2019)."""
    adapter = Ridge(features, ways=ways, penalty=penalty, scale=scale)
    return build(adapter, aggregator, objective, layer)


def logistic(
    features: Features = "body",
    *,
    ways: int | None = None,
    penalty: float = 0.1,
    steps: int = 15,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """A converged logistic regression with a learned penalty (LR-D2, Bertinetto et al. 2019)."""
    adapter = Logistic(features, ways=ways, penalty=penalty, steps=steps)
    return build(adapter, aggregator, objective, layer)


def metaoptnet(
    features: Features = "body",
    *,
    ways: int | None = None,
    C: float = 0.1,
    steps: int = 25,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """MetaOptNet: a multi-class support vector machine (Lee et al. 2019)."""
    return build(SVM(features, ways=ways, C=C, steps=steps), aggregator, objective, layer)
