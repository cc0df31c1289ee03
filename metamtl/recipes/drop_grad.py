"""DropGrad: noise on the inner gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..adapters import Gradient
from ..aggregators import Aggregator
from ..objectives import Objective, query_loss
from ..rules import Descent, DropGrad, Rule
from .base import How, Prefixes, Rate, Recipe, build


def drop_grad(
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    rate: float = 0.1,
    kind: Literal["binary", "gaussian"] = "binary",
    seed: int = 0,
    adapts: Prefixes | None = None,
    differentiation: How = "exact",
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """DropGrad: MAML with noise on the inner gradients (Tseng et al. 2020).

    Pass `recipe.at(step)` to `meta_backward`; the noise is determined by `seed` and the step. In
    evaluation there is none.
    """
    noisy = DropGrad(Descent() if rule is None else rule, rate, kind)
    adapter = Gradient(steps, lr, adapts, differentiation, rule=noisy)
    return replace(build(adapter, aggregator, objective, layer), schedule=_NewNoise(seed))


@dataclass(frozen=True)
class _NewNoise:
    seed: int

    def __call__(self, recipe: Recipe, step: int) -> Recipe:
        adapter: Any = recipe.adapter
        return replace(recipe, adapter=adapter.replaced(rule=adapter.rule.with_key(self.seed, step)))
