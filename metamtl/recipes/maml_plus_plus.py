"""MAML++: learned step sizes and annealing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..adapters import FirstOrder, Gradient, LearnedRates
from ..aggregators import Aggregator
from ..objectives import MultiStep, annealed_weights, query_loss
from .base import Prefixes, Recipe, build


def maml_plus_plus(
    model: nn.Module,
    steps: int = 5,
    lr: float = 0.1,
    *,
    multi_step_until: int,
    first_order_until: int = 0,
    adapts: Prefixes | None = None,
    aggregator: Aggregator | None = None,
    layer: str | None = None,
) -> Recipe:
    """MAML++: learned step sizes for each tensor and step, and annealing (Antoniou et al. 2019).

    The multi-step loss is annealed to the loss after the last inner step until outer step
    `multi_step_until`; before outer step `first_order_until`, inner gradients are constants. Pass
    `recipe.at(step)` to `meta_backward`. The other parts of the method are `nets.with_batchnorm(model,
    "per_step", steps=K)` and `torch.optim.lr_scheduler.CosineAnnealingLR`.
    """
    rates = LearnedRates(model, lr, per="tensor", steps=steps, adapts=adapts)
    recipe = build(Gradient(steps, rates, adapts), aggregator, query_loss, layer)
    return replace(recipe, schedule=_Annealing(multi_step_until, first_order_until))


@dataclass(frozen=True)
class _Annealing:
    multi_step_until: int
    first_order_until: int

    def __call__(self, recipe: Recipe, step: int) -> Recipe:
        adapter: Any = recipe.adapter
        if step < self.multi_step_until:
            weights = annealed_weights(adapter.steps, step, self.multi_step_until)
            recipe = replace(recipe, objective=MultiStep(weights))
        if step < self.first_order_until:
            recipe = replace(recipe, adapter=adapter.replaced(differentiation=FirstOrder()))
        return recipe
