"""Methods that compare features of the query set with those of the support set."""

from __future__ import annotations

from ..adapters import Prototype
from ..aggregators import Aggregator
from ..objectives import Objective, query_loss
from .base import Recipe, build


def protonet(
    ways: int | None = None,
    *,
    body: str = "body",
    head: str = "head",
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """ProtoNet: a head computed from class means (Snell et al. 2017)."""
    return build(Prototype(ways, body, head), aggregator, objective, layer)
