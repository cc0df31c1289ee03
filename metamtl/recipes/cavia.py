"""CAVIA: adapt a context vector."""

from __future__ import annotations

from ..adapters import Chain, Gradient, Zeros
from ..aggregators import Aggregator
from ..objectives import Objective, query_loss
from ..rules import Rule
from .base import How, Prefixes, Rate, Recipe, build


def cavia(
    steps: int = 1,
    lr: Rate = 1.0,
    *,
    context: Prefixes = "context",
    differentiation: How = "exact",
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """CAVIA: adapt only context parameters, from zero (Zintgraf et al. 2019); for `nets.Context`."""
    prefixes = context if isinstance(context, str) else tuple(context)
    adapter = Chain(Zeros(prefixes), Gradient(steps, lr, prefixes, differentiation, rule=rule))
    return build(adapter, aggregator, objective, layer)
