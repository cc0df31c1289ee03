"""Named algorithms, each a combination of an adapter, an aggregator and an objective.

Besides its own arguments every recipe takes `aggregator=` (default `Mean()`), `objective=` and `layer=`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .adapters import (
    Adapter,
    Differentiation,
    Gradient,
    HeadTable,
    Implicit,
    LearnedRates,
    Prototype,
    Shared,
)
from .adapters.differentiation import Shorthand
from .aggregators import Aggregator, Mean, as_aggregator
from .functional.implicit import Solver
from .objectives import Objective, displacement, episode_loss, query_loss
from .rules import Rule

Rate = float | Sequence[float] | LearnedRates
Prefixes = str | Iterable[str]
How = Differentiation | Shorthand


@dataclass(frozen=True)
class Recipe:
    """An adapter, an aggregator and an objective, which together define a method.

    Args:
        adapter: computes the parameters that a task uses.
        aggregator: combines the per-task gradients; TorchJD's aggregators and scalarizers are wrapped.
        objective: the function of `objectives.Adaptation` that is minimized.
        layer: where the per-task gradients are taken. If None, at the parameters; otherwise at the output
            of the module with this name (`layer="body"`), the features that named tasks with one input
            share. A step then costs one backward pass through the body, for any number of tasks.

    The adapter and the aggregator may have parameters (a table of heads, learned rates, the uncertainties
    of `UW`). They are learned only if they are passed to an optimizer:
    `Adam([*model.parameters(), *recipe.parameters()])`.

    Raises:
        TypeError: a part has the wrong type.
        ValueError: `layer` is set, and the aggregator has state for each parameter.

    >>> from metamtl import aggregators
    >>> recipe = Recipe(Shared(), aggregators.UW(3))
    >>> [name for name, _ in recipe.named_parameters()]
    ['aggregator.inner.log_var']
    """

    adapter: Adapter
    aggregator: Aggregator = field(default_factory=Mean)
    objective: Objective = query_loss
    layer: str | None = None

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
        if self.layer is not None and not isinstance(self.layer, str):
            raise TypeError(
                f"Recipe: layer={self.layer!r} is not the name of a module; pass a name or None."
            )
        if self.layer is not None and self.aggregator.by_parameter:
            raise ValueError(
                f"{self.aggregator.name} remembers the gradient of each parameter from step to step, but"
                f" gradients at features, layer={self.layer!r}, belong to other examples in each step; use"
                " layer=None."
            )

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the adapter and the aggregator, for an optimizer."""
        return self._parts().parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`parameters` with their names, such as `adapter.rule.momentum` or `aggregator.inner.log_var`."""
        return self._parts().named_parameters()

    def state_dict(self) -> dict[str, Any]:
        """The parameters and the state of the adapter and the aggregator."""
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


def joint(
    *,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """Joint training: every task uses the shared parameters."""
    return _recipe(Shared(), aggregator, objective, layer)


def mtl(
    ids: Iterable[int],
    features: int,
    *,
    head: str = "head",
    aggregator: Aggregator | None = None,
    objective: Objective = episode_loss,
    layer: str | None = None,
) -> Recipe:
    """Multi-task learning: a shared body and one persistent head row per class (Wang et al. 2021).

    Learns from both support and query sets, because no inner loop separates them. Pass
    `recipe.parameters()` to the optimizer to learn the table of heads.
    """
    return _recipe(HeadTable(ids, features, head), aggregator, objective, layer)


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
    return _recipe(Gradient(steps, lr, adapts, differentiation, rule=rule), aggregator, objective, layer)


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
    return _recipe(Gradient(steps, lr, adapts, "first_order", rule=rule), aggregator, objective, layer)


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
    return _recipe(Gradient(steps, lr, adapts, differentiation, rule=rule), aggregator, objective, layer)


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
    return _recipe(Gradient(steps, lr, adapts, differentiation, rule=rule), aggregator, objective, layer)


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
    return _recipe(Gradient(steps, rates, adapts, differentiation, rule=rule), aggregator, objective, layer)


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
    return _recipe(Gradient(steps, rates, adapts, differentiation, rule=rule), aggregator, objective, layer)


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
    return _recipe(Gradient(steps, lr, adapts, implicit, rule=rule), aggregator, objective, layer)


def reptile(
    steps: int = 5,
    lr: Rate = 0.01,
    *,
    adapts: Prefixes | None = None,
    rule: Rule | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = displacement,
    layer: str | None = None,
) -> Recipe:
    """Reptile: move towards the parameters after K steps on the support set (Nichol et al. 2018).

    Differs from the authors' code in: 1. plain gradient steps instead of Adam (for Adam pass
    `rule=rules.Adam(betas=(0.0, 0.999))`); 2. each step uses the whole support set instead of a
    mini-batch; 3. the rule's moving averages are reset for every task.
    """
    return _recipe(Gradient(steps, lr, adapts, "first_order", rule=rule), aggregator, objective, layer)


def protonet(
    ways: int | None = None,
    *,
    body: str = "body",
    head: str = "head",
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """ProtoNet: a head computed from class means (Snell et al. 2017)."""
    return _recipe(Prototype(ways, body, head), aggregator, objective, layer)


def _recipe(
    adapter: Adapter, aggregator: Aggregator | None, objective: Objective, layer: str | None
) -> Recipe:
    return Recipe(adapter, Mean() if aggregator is None else aggregator, objective, layer)
