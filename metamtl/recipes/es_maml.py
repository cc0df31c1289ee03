"""ES-MAML: the outer gradient by evolution strategies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..adapters import Gradient
from ..aggregators import Aggregator
from ..objectives import EvolutionStrategy
from ..rules import Rule
from .base import Prefixes, Rate, Recipe, build


def es_maml(
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    samples: int = 8,
    sigma: float = 0.1,
    seed: int = 0,
    adapts: Prefixes | None = None,
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    layer: str | None = None,
) -> Recipe:
    """ES-MAML: the outer gradient is estimated by evolution strategies (Song et al. 2020).

    Pass `recipe.at(step)` to `meta_backward`; the noise is determined by `seed` and the step.
    """
    adapter = Gradient(steps, lr, adapts, "first_order", rule=rule)
    recipe = build(adapter, aggregator, EvolutionStrategy(samples, sigma), layer)
    return replace(recipe, schedule=_NewNoise(seed))


@dataclass(frozen=True)
class _NewNoise:
    seed: int

    def __call__(self, recipe: Recipe, step: int) -> Recipe:
        objective: Any = recipe.objective
        return replace(recipe, objective=objective.with_key(self.seed, step))
