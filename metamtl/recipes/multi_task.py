"""Joint and multi-task training, without an inner loop."""

from __future__ import annotations

from collections.abc import Iterable

from ..adapters import HeadTable, Shared
from ..aggregators import Aggregator
from ..objectives import Objective, episode_loss, query_loss
from .base import Recipe, build


def joint(
    *,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """Joint training: every task uses the shared parameters."""
    return build(Shared(), aggregator, objective, layer)


def mtl(
    ids: Iterable[int],
    features: int,
    *,
    head: str = "head",
    aggregator: Aggregator | None = None,
    objective: Objective = episode_loss,
    layer: str | None = None,
) -> Recipe:
    """Multi-task learning: a shared body and one persistent head row per class (Wang et al. 2021).

    Learns from both support and query sets, because no inner loop separates them. Pass
    `recipe.parameters()` to the optimizer to learn the table of heads.
    """
    return build(HeadTable(ids, features, head), aggregator, objective, layer)
