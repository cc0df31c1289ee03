"""Named algorithms: parts chosen, nothing new.

Every recipe takes `aggregator=` (default `Mean()`), `objective=` and `at=` beside its own arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .adapters import Adapter, Gradient, HeadTable, LearnedRates, Prototype, Shared
from .aggregators import Aggregator, Mean, as_aggregator
from .objectives import Objective, displacement, episode_loss, query_loss
from .rules import Rule

Rate = float | Sequence[float] | LearnedRates
Prefixes = str | Iterable[str]


@dataclass(frozen=True)
class Recipe:
    """An adapter, an aggregator and an objective: everything that distinguishes one method from another.

    Args:
        adapter: which parameters a task uses.
        aggregator: how the per-task gradients are combined; one of TorchJD's, or a scalarizer, is wrapped.
        objective: what is minimized, a function of `objectives.Adaptation`.
        at: where the per-task gradients are taken: at the parameters (None), or at the output of a module,
            by its name in the model (`at="body"`), the features that named tasks with one input share. A
            step then costs one backward pass through the body, whatever the number of tasks.

    The adapter and the aggregator may have parameters (a table of heads, learned rates, the uncertainties
    of `UW`). They are learned only if an optimizer has them:
    `Adam([*model.parameters(), *recipe.parameters()])`.

    Raises:
        TypeError: a part of the wrong kind.
        ValueError: `at` with an aggregator that has state for each parameter.

    >>> from metamtl import aggregators
    >>> recipe = Recipe(Shared(), aggregators.UW(3))
    >>> [name for name, _ in recipe.named_parameters()]
    ['aggregator.inner.log_var']
    """

    adapter: Adapter
    aggregator: Aggregator = field(default_factory=Mean)
    objective: Objective = query_loss
    at: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, Adapter):
            remedy = "pass one of metamtl.adapters, such as Shared() or Gradient(steps=5, lr=0.01)"
            if isinstance(self.adapter, type):
                remedy = f"pass an instance, {self.adapter.__name__}(...)"
            raise TypeError(f"Recipe: adapter={self.adapter!r} is not an adapter; {remedy}.")
        object.__setattr__(self, "aggregator", as_aggregator(self.aggregator))
        if not callable(self.objective):
            raise TypeError(
                f"Recipe: objective={self.objective!r} is not callable; pass a function of an Adaptation,"
                " such as metamtl.objectives.query_loss."
            )
        if self.at is not None and not isinstance(self.at, str):
            raise TypeError(f"Recipe: at={self.at!r} is not the name of a module, as at='body', or None.")
        if self.at is not None and self.aggregator.by_parameter:
            raise ValueError(
                f"{self.aggregator.name} remembers the gradients of single parameters from step to step,"
                f" and those of features, at={self.at!r}, are of other examples each time; use at=None."
            )

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the adapter and of the aggregator, for an optimizer."""
        return self._parts().parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`parameters` with their names, such as `adapter.rule.momentum` or `aggregator.inner.log_var`."""
        return self._parts().named_parameters()

    def state_dict(self) -> dict[str, Any]:
        """The parameters and the state of the adapter and of the aggregator."""
        return self._parts().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load the result of `state_dict`, as `nn.Module.load_state_dict` does."""
        self._parts().load_state_dict(state_dict, strict)

    def to(self, *args: Any, **kwargs: Any) -> Recipe:
        """Move the adapter and the aggregator to a device or dtype, in place, as `nn.Module.to` does."""
        self._parts().to(*args, **kwargs)
        return self

    def _parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({"adapter": self.adapter, "aggregator": self.aggregator})


def joint(**parts: Any) -> Recipe:
    """Joint training: the shared parameters for every task."""
    return Recipe(Shared(), **parts)


def mtl(ids: Iterable[int], features: int, *, head: str = "head", **parts: Any) -> Recipe:
    """Multi-task learning: shared body, a persistent head row for every class (Wang et al. 2021).

    Learns from support and query alike, because there is no inner loop that separates them. The table of
    heads is learned by the optimizer that has `recipe.parameters()`.
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
