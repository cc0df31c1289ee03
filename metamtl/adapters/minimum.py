"""An inner loop that ends in a minimum: iMAML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from ..functional import Params, twice_differentiable
from ..implicit import Solver, implicit
from ..recompute import Tensors
from ..rules import Rule
from .rates import LearnedRates
from .unroll import Given, Measure, State, opened, unrolled


@dataclass(frozen=True)
class Minimum:
    """`argmin_phi L_support(phi) + proximal / 2 |phi - theta|^2`, and how it is differentiated.

    Raises:
        ValueError: what `order="implicit"` would answer with a gradient of zero, or a wrong one.
    """

    proximal: float
    solver: Solver
    solver_steps: int

    def check(self, lr: Any, rule: Rule, adapts: Any) -> None:
        if isinstance(lr, LearnedRates):
            raise ValueError(
                "order='implicit' with LearnedRates: a minimum does not depend on the step sizes that led"
                " to it, so they would learn nothing; give numbers as lr, or another order."
            )
        if rule.weight_decay:
            raise ValueError(
                f"order='implicit' with rule={rule}: its weight_decay moves the point where the steps end"
                " away from the minimum that is differentiated; put the penalty into the loss."
            )
        if self.proximal < 0 or (self.proximal == 0 and adapts is None):
            raise ValueError(
                f"proximal={self.proximal}: it must be positive; at 0 the minimum forgets where it started,"
                " and nothing is learned but the parameters that adapts= leaves out."
            )
        if self.solver not in ("cg", "neumann") or self.solver_steps < 1:
            raise ValueError(
                f"solver={self.solver!r}, solver_steps={self.solver_steps}: solver is 'cg' or 'neumann',"
                " its steps at least 1."
            )

    def run(
        self,
        advance: Callable[..., State],
        measure: Measure,
        theta: Params,
        rate: float,
        state: State,
        given: Given,
        steps: range,
        last: bool,
    ) -> State:
        """The state after these steps; after the last, with the gradient of the minimum at `theta`."""
        start = {name: param.detach() for name, param in theta.items()}

        def held(params: Params, batch: Any) -> Tensor:
            gaps = [(params[name] - origin).square().sum() for name, origin in start.items()]
            return measure(params, batch) + 0.5 * self.proximal * torch.stack(gaps).sum()

        state = State({name: param.detach() for name, param in state.params.items()}, state.memory)
        state = unrolled(partial(advance, held), state, given, steps)
        if not last:
            return state
        constants, put = opened(given)

        def field(point: Tensors, constants: Tensors) -> Tensors:
            others, support, _ = put(constants)
            with twice_differentiable():
                gradients = grad(lambda params: measure({**others, **params}, support))(
                    dict(zip(theta, point))
                )
            return tuple(gradients.values())

        found = implicit(
            field,
            tuple(state.params.values()),
            tuple(theta.values()),
            constants,
            proximal=self.proximal,
            solver=self.solver,
            solver_steps=self.solver_steps,
            rate=rate,
        )
        return State(dict(zip(theta, found)), state.memory)
