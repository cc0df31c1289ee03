"""One of every aggregator, and a reference by plain autograd, for the laws."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metamtl import aggregators

# What a method cannot do without, for a number of rows.
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "AutoLambda": lambda rows: {"rate": 0.1, "every": 1_000},
    "CAGrad": lambda rows: {"c": 0.5},
    "COSMOS": lambda rows: {"lambda_": 0.1, "weights": torch.ones(rows)},
    "Constant": lambda rows: {"weights": torch.arange(1.0, rows + 1)},
    "DWA": lambda rows: {"calls_per_epoch": 2},
    "FAMO": lambda rows: {"num_tasks": rows},
    "FairGrad": lambda rows: {"alpha": 1.0},
    "IMTLL": lambda rows: {"shape": rows},
    "Krum": lambda rows: {"n_byzantine": 0},
    "PBI": lambda rows: {"theta": 5.0, "weights": torch.ones(rows)},
    "STCH": lambda rows: {"mu": 0.1},
    "TrimmedMean": lambda rows: {"trim_number": 1},
    "UW": lambda rows: {"shape": rows},
}
Make = Callable[..., aggregators.Aggregator]


@pytest.fixture
def make() -> Make:
    """`make(name, rows, **options)`."""

    def build(name: str, rows: int, **options: Any) -> aggregators.Aggregator:
        needed = OPTIONS.get(name, lambda rows: {})(rows)
        return getattr(aggregators, name)(**{**needed, **options})

    return build


class Plain:
    """A copy of a model that runs with other values of its parameters, by plain autograd alone.

    The reference of the laws about engines. Aliases and ties are those of the model: one value is used
    wherever its parameter is registered. Values are named as in `model.named_parameters()`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = deepcopy(model)
        names = {id(param): name for name, param in self.model.named_parameters()}
        self.start = {n: p.detach().clone().requires_grad_() for n, p in self.model.named_parameters()}
        self.places = [
            (module, local, names[id(param)])
            for module in self.model.modules()
            for local, param in module._parameters.items()
            if param is not None
        ]
        every = self.model.named_parameters(remove_duplicate=False)
        self.aliases = {alias: names[id(param)] for alias, param in every}

    def names(self, *prefixes: str) -> list[str]:
        """Names of the parameters under the prefixes, each of which may be any alias."""
        chosen = {
            name
            for alias, name in self.aliases.items()
            for prefix in prefixes
            if alias == prefix or alias.startswith(f"{prefix}.")
        }
        return [name for name in self.start if name in chosen]

    def __call__(self, values: dict[str, Tensor], x: Any, module: str = "") -> Any:
        """Output of the model, or of one of its modules, on `x`."""
        originals = [(owner, local, owner._parameters[local]) for owner, local, _ in self.places]
        for owner, local, name in self.places:
            owner._parameters[local] = values[name]  # type: ignore[assignment]
        try:
            return self.model.get_submodule(module)(x)
        finally:
            for owner, local, original in originals:
                owner._parameters[local] = original

    def steps(
        self,
        values: dict[str, Tensor],
        names: list[str],
        support: Any,
        loss: Any,
        rates: dict[str, Any],
        steps: int,
        *,
        first_order: bool = False,
        proximal: float = 0.0,
    ) -> dict[str, Tensor]:
        """`values` after gradient steps on `L(phi) + proximal / 2 |phi - theta|^2` over `names`."""
        origin = {name: values[name].detach() for name in names}
        for _ in range(steps):
            x = support[0].view_as(support[0])  # a model may differentiate with respect to it
            value = loss(self(values, x), support[1])
            for name in names if proximal else ():
                value = value + 0.5 * proximal * (values[name] - origin[name]).square().sum()
            inputs = [values[name] for name in names]
            slopes = torch.autograd.grad(value, inputs, create_graph=not first_order)
            values = {**values, **{n: values[n] - rates[n] * g for n, g in zip(names, slopes)}}
        return values

    def gradient(self, episode: Any, loss: Any, adapt: Any, extra: Any = ()) -> list[Tensor]:
        """The gradient of the mean query loss with respect to the parameters, and then to `extra`.

        `adapt(values, support, task) -> values` is one task's adaptation.
        """
        losses = []
        for t in range(episode.num_tasks):
            one = episode[t]
            values = adapt(self.start, one.support, one.task)
            losses.append(loss(self(values, one.query[0]), one.query[1]))
        inputs = [*self.start.values(), *extra]
        mean = torch.stack(losses).mean()
        return list(torch.autograd.grad(mean, inputs, allow_unused=True, materialize_grads=True))


@pytest.fixture
def plain() -> type[Plain]:
    """`plain(model)`: the model under plain autograd."""
    return Plain
