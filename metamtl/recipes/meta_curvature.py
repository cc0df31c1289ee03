"""Meta-Curvature: learned matrices on the inner gradients."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..adapters import Gradient
from ..aggregators import Aggregator
from ..objectives import Objective, query_loss
from ..rules import MetaCurvature
from .base import How, Rate, Recipe, build


def meta_curvature(
    model: nn.Module,
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    adapts: str | Iterable[str] | None = None,
    differentiation: How = "exact",
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """Meta-Curvature: a learned linear transformation of the inner gradients (Park, Oliva 2019)."""
    rule = MetaCurvature(model, adapts)
    return build(Gradient(steps, lr, adapts, differentiation, rule=rule), aggregator, objective, layer)
