"""Methods whose inner loop consists of gradient steps."""

from __future__ import annotations

from torch import nn

from ..adapters import Gradient, Implicit, LearnedRates
from ..aggregators import Aggregator
from ..functional.implicit import Solver
from ..objectives import Objective, displacement, query_loss
from ..rules import Rule
from .base import How, Prefixes, Rate, Recipe, build


def maml(
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    adapts: Prefixes | None = None,
    differentiation: How = "exact",
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """MAML: differentiate through K gradient steps (Finn et al. 2017)."""
    return build(Gradient(steps, lr, adapts, differentiation, rule=rule), aggregator, objective, layer)


def fomaml(
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    adapts: Prefixes | None = None,
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """First-order MAML: the inner gradients are treated as constants (Finn et al. 2017)."""
    return build(Gradient(steps, lr, adapts, "first_order", rule=rule), aggregator, objective, layer)


def anil(
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    adapts: Prefixes = "head",
    differentiation: How = "exact",
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """ANIL: the inner loop fine-tunes only the head (Raghu et al. 2020)."""
    return build(Gradient(steps, lr, adapts, differentiation, rule=rule), aggregator, objective, layer)


def boil(
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    adapts: Prefixes = "body",
    differentiation: How = "exact",
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """BOIL: the inner loop fine-tunes only the body (Oh et al. 2021)."""
    return build(Gradient(steps, lr, adapts, differentiation, rule=rule), aggregator, objective, layer)


def metasgd(
    model: nn.Module,
    steps: int = 1,
    lr: float = 0.01,
    *,
    adapts: Prefixes | None = None,
    differentiation: How = "exact",
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """Meta-SGD: MAML with a learned step size for each element of a parameter (Li et al. 2017).

    Differs from the paper in: all step sizes are initialized to `lr` instead of random numbers.
    """
    rates = LearnedRates(model, lr, per="element", adapts=adapts)
    return build(Gradient(steps, rates, adapts, differentiation, rule=rule), aggregator, objective, layer)


def lslr(
    model: nn.Module,
    steps: int = 5,
    lr: float = 0.1,
    *,
    adapts: Prefixes | None = None,
    differentiation: How = "exact",
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """MAML with a learned step size for each tensor and step, as in MAML++ (Antoniou et al. 2019)."""
    rates = LearnedRates(model, lr, per="tensor", steps=steps, adapts=adapts)
    return build(Gradient(steps, rates, adapts, differentiation, rule=rule), aggregator, objective, layer)


def imaml(
    steps: int = 16,
    lr: float = 0.1,
    *,
    adapts: Prefixes | None = None,
    rule: Rule | None = None,
    proximal: float = 2.0,
    solver: Solver = "cg",
    solver_steps: int = 5,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """iMAML: the implicit gradient at the minimum of the inner loop (Rajeswaran et al. 2019)."""
    implicit = Implicit(proximal, solver, solver_steps)
    return build(Gradient(steps, lr, adapts, implicit, rule=rule), aggregator, objective, layer)


def reptile(
    steps: int = 5,
    lr: Rate = 0.01,
    *,
    adapts: Prefixes | None = None,
    rule: Rule | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    aggregator: Aggregator | None = None,
    objective: Objective = displacement,
    layer: str | None = None,
) -> Recipe:
    """Reptile: move towards the parameters after K steps on the support set (Nichol et al. 2018).

    Only support sets are read, so tasks may be drawn with `queries=0`. The authors' protocol is
    `reptile(5, 1e-3, rule=rules.Adam(betas=(0.0, 0.999)), batch_size=10)` with 10 support examples of each
    class, 5 tasks in a step, and `torch.optim.SGD(model.parameters(), lr=1.0)` with a rate that falls
    linearly to 0.

    Differs from the authors' code in: the rule's moving averages are reset for every task.
    """
    adapter = Gradient(steps, lr, adapts, "first_order", rule=rule, batch_size=batch_size, seed=seed)
    return build(adapter, aggregator, objective, layer)
