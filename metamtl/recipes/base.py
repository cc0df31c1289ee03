"""Recipe: an adapter, an aggregator and an objective, which together define a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..adapters import Adapter, Differentiation, LearnedRates
from ..adapters.differentiation import Shorthand
from ..aggregators import Aggregator, Mean, as_aggregator
from ..objectives import Objective, query_loss

Rate = float | Sequence[float] | Mapping[str, float | Sequence[float]] | LearnedRates
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
        schedule: `schedule(recipe, step) -> recipe`, the recipe of an outer step, for methods that change
            during a training; see `at`.

    The adapter and the aggregator may have parameters (a table of heads, learned rates, the uncertainties
    of `UW`). They are learned only if they are passed to an optimizer:
    `Adam([*model.parameters(), *recipe.parameters()])`.

    Raises:
        TypeError: a part has the wrong type.
        ValueError: `layer` is set, and the aggregator has state for each parameter.

    >>> from metamtl import adapters, aggregators
    >>> recipe = Recipe(adapters.Shared(), aggregators.UW(3))
    >>> [name for name, _ in recipe.named_parameters()]
    ['aggregator.inner.log_var']
    """

    adapter: Adapter
    aggregator: Aggregator = field(default_factory=Mean)
    objective: Objective = query_loss
    layer: str | None = None
    schedule: Callable[[Recipe, int], Recipe] | None = None

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

    def at(self, step: int) -> Recipe:
        """The recipe for outer step `step`, counted from 0; it has the same parameters.

        Without a schedule, this recipe. Call it in the training loop:
        `meta_backward(model, recipe.at(step), ...)`.
        """
        return self if self.schedule is None else self.schedule(replace(self, schedule=None), step)

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


def build(
    adapter: Adapter, aggregator: Aggregator | None, objective: Objective, layer: str | None
) -> Recipe:
    return Recipe(adapter, Mean() if aggregator is None else aggregator, objective, layer)
