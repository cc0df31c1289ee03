"""Named algorithms: parts chosen, nothing new.

Every recipe takes `aggregator=` (default `Mean()`), `objective=` and `at=` beside its own arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .adapters import Adapter, Gradient, HeadTable, LearnedRates, Prototype, Shared
from .aggregators import Aggregator, Mean
from .objectives import Objective, displacement, episode_loss, query_loss
from .rules import Rule

Rate = float | Sequence[float] | LearnedRates
Prefixes = str | Iterable[str]


@dataclass(frozen=True)
class Recipe:
    """Which parameters a task uses, what the tasks' gradients say together, and what is minimised.

    `at` says where the gradients are taken that the aggregator sees: at the parameters (None), or at the
    output of a module, by its name in the model (`at="body"`): the features that named tasks with one
    input share. A step then costs one pass through the body, whatever the number of tasks.

    Raises:
        ValueError: `at` with an aggregator that remembers something for each parameter.
    """

    adapter: Adapter
    aggregator: Aggregator = field(default_factory=Mean)
    objective: Objective = query_loss
    at: str | None = None

    def __post_init__(self) -> None:
        if self.at is not None and self.aggregator.by_parameter:
            raise ValueError(
                f"{self.aggregator.name} remembers the gradients of single parameters from step to step,"
                f" and those of features, at={self.at!r}, are of other examples each time; use at=None."
            )


def joint(**parts: Any) -> Recipe:
    """Joint training: the shared parameters for every task."""
    return Recipe(Shared(), **parts)


def mtl(ids: Iterable[int], features: int, *, head: str = "head", **parts: Any) -> Recipe:
    """Multi-task learning: shared body, a persistent head row for every class (Wang et al. 2021).

    Learns from support and query alike, for there is no inner loop to keep them apart.
    """
    return Recipe(HeadTable(ids, features, head), **{"objective": episode_loss, **parts})


def maml(
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    adapts: Prefixes | None = None,
    order: Any = "exact",
    rule: Rule | None = None,
    **parts: Any,
) -> Recipe:
    """MAML: K gradient steps, differentiated through (Finn et al. 2017)."""
    return Recipe(Gradient(steps, lr, adapts, order, rule=rule), **parts)


def fomaml(steps: int = 1, lr: Rate = 0.01, *, adapts: Prefixes | None = None, **parts: Any) -> Recipe:
    """First-order MAML: the inner gradients are taken as constants."""
    return Recipe(Gradient(steps, lr, adapts, order="first"), **parts)


def anil(
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    head: Prefixes = "head",
    order: Any = "exact",
    rule: Rule | None = None,
    **parts: Any,
) -> Recipe:
    """ANIL: the inner loop fine-tunes the head alone (Raghu et al. 2020)."""
    return Recipe(Gradient(steps, lr, head, order, rule=rule), **parts)


def boil(
    steps: int = 1,
    lr: Rate = 0.01,
    *,
    body: Prefixes = "body",
    order: Any = "exact",
    rule: Rule | None = None,
    **parts: Any,
) -> Recipe:
    """BOIL: the inner loop fine-tunes the body alone (Oh et al. 2021)."""
    return Recipe(Gradient(steps, lr, body, order, rule=rule), **parts)


def metasgd(
    model: nn.Module,
    steps: int = 1,
    lr: float = 0.01,
    *,
    adapts: Prefixes | None = None,
    order: Any = "exact",
    **parts: Any,
) -> Recipe:
    """Meta-SGD: MAML with a learned step size for each element of a parameter (Li et al. 2017).

    Differs from the paper in: all step sizes start from `lr`, rather than from random numbers.
    """
    rates = LearnedRates(model, lr, per="element", adapts=adapts)
    return Recipe(Gradient(steps, rates, adapts, order), **parts)


def lslr(
    model: nn.Module,
    steps: int = 5,
    lr: float = 0.1,
    *,
    adapts: Prefixes | None = None,
    order: Any = "exact",
    **parts: Any,
) -> Recipe:
    """MAML with a learned step size for each tensor and step, as MAML++ has them (Antoniou et al. 2019)."""
    rates = LearnedRates(model, lr, per="tensor", steps=steps, adapts=adapts)
    return Recipe(Gradient(steps, rates, adapts, order), **parts)


def imaml(
    steps: int = 16,
    lr: float = 0.1,
    *,
    adapts: Prefixes | None = None,
    rule: Rule | None = None,
    proximal: float = 2.0,
    solver: Any = "cg",
    solver_steps: int = 5,
    **parts: Any,
) -> Recipe:
    """iMAML: the gradient of the minimum that the steps come near to (Rajeswaran et al. 2019)."""
    minimum = {"proximal": proximal, "solver": solver, "solver_steps": solver_steps}
    return Recipe(Gradient(steps, lr, adapts, "implicit", rule=rule, **minimum), **parts)


def reptile(
    steps: int = 5,
    lr: Rate = 0.01,
    *,
    adapts: Prefixes | None = None,
    rule: Rule | None = None,
    **parts: Any,
) -> Recipe:
    """Reptile: towards where K steps on the support set lead (Nichol et al. 2018).

    Differs from the authors' code in: 1. plain gradient steps rather than Adam, which
    `rule=rules.Adam(betas=(0.0, 0.999))` is; 2. each step sees the whole support set rather than a
    mini-batch of it; 3. the rule's averages begin anew in every task.
    """
    return Recipe(
        Gradient(steps, lr, adapts, order="first", rule=rule), **{"objective": displacement, **parts}
    )


def protonet(ways: int | None = None, *, body: str = "body", head: str = "head", **parts: Any) -> Recipe:
    """ProtoNet: a head written from class means (Snell et al. 2017)."""
    return Recipe(Prototype(ways, body, head), **parts)
