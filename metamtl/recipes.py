"""Named algorithms: parts chosen, nothing new.

Every recipe takes `aggregator=` (default `Mean()`) and `objective=` beside its own arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .adapters import Adapter, Gradient, HeadTable, Prototype, Shared
from .aggregators import Aggregator, Mean
from .objectives import Objective, displacement, episode_loss, query_loss

Rate = float | Sequence[float]
Prefixes = str | Iterable[str]


@dataclass(frozen=True)
class Recipe:
    """Which parameters a task uses, what the tasks' gradients say together, and what is minimised."""

    adapter: Adapter
    aggregator: Aggregator = field(default_factory=Mean)
    objective: Objective = query_loss


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
    **parts: Any,
) -> Recipe:
    """MAML: K gradient steps, differentiated through (Finn et al. 2017)."""
    return Recipe(Gradient(steps, lr, adapts, order), **parts)


def fomaml(steps: int = 1, lr: Rate = 0.01, *, adapts: Prefixes | None = None, **parts: Any) -> Recipe:
    """First-order MAML: the inner gradients are taken as constants."""
    return Recipe(Gradient(steps, lr, adapts, order="first"), **parts)


def anil(
    steps: int = 1, lr: Rate = 0.01, *, head: Prefixes = "head", order: Any = "exact", **parts: Any
) -> Recipe:
    """ANIL: the inner loop fine-tunes the head alone (Raghu et al. 2020)."""
    return Recipe(Gradient(steps, lr, head, order), **parts)


def boil(
    steps: int = 1, lr: Rate = 0.01, *, body: Prefixes = "body", order: Any = "exact", **parts: Any
) -> Recipe:
    """BOIL: the inner loop fine-tunes the body alone (Oh et al. 2021)."""
    return Recipe(Gradient(steps, lr, body, order), **parts)


def reptile(steps: int = 5, lr: Rate = 0.01, *, adapts: Prefixes | None = None, **parts: Any) -> Recipe:
    """Reptile: towards where K steps on the support set lead (Nichol et al. 2018).

    Differs from the authors' code in: 1. plain gradient steps rather than Adam; 2. each step sees the
    whole support set rather than a mini-batch of it.
    """
    return Recipe(Gradient(steps, lr, adapts, order="first"), **{"objective": displacement, **parts})


def protonet(ways: int | None = None, *, body: str = "body", head: str = "head", **parts: Any) -> Recipe:
    """ProtoNet: a head written from class means (Snell et al. 2017)."""
    return Recipe(Prototype(ways, body, head), **parts)
