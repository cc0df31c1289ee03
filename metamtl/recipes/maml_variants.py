"""Variants of MAML: what is adapted, by which rule, and how the outer gradient is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from ..adapters import Chain, FirstOrder, Gradient, LearnedRates, Zeros
from ..aggregators import Aggregator
from ..objectives import EvolutionStrategy, MultiStep, Objective, annealed_weights, query_loss
from ..rules import Descent, DropGrad, Learned, MetaCurvature, Rule
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
        if isinstance(recipe.objective, EvolutionStrategy):
            return replace(recipe, objective=recipe.objective.with_key(self.seed, step))
        return replace(recipe, adapter=adapter.replaced(rule=adapter.rule.with_key(self.seed, step)))


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
