"""A learned update rule."""

from __future__ import annotations

from torch import nn

from ..adapters import Gradient
from ..aggregators import Aggregator
from ..objectives import Objective, query_loss
from ..rules import Learned
from .base import How, Prefixes, Rate, Recipe, build


def learned_rule(
    steps: int = 5,
    lr: Rate = 0.1,
    *,
    hidden: int = 20,
    state: int = 8,
    adapts: Prefixes | None = None,
    differentiation: How = "exact",
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """A learned update rule with memory, the same for every entry (Andrychowicz et al. 2016).

    The rule is a perceptron with layers of `2 + state`, `hidden` and `1 + state` units, and tanh.
    """
    module = nn.Sequential(nn.Linear(2 + state, hidden), nn.Tanh(), nn.Linear(hidden, 1 + state))
    rule = Learned(module, state)
    return build(Gradient(steps, lr, adapts, differentiation, rule=rule), aggregator, objective, layer)
