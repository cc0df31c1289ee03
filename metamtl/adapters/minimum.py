"""An inner loop that ends in a minimum: iMAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..functional import Params, gradient
from ..functional.differentiate import detached
from ..functional.implicit import Solver, implicit
from ..functional.scan import Tensors, opened
from ..rules import Rule
from .inner_loop import device_of, run, step_number
from .rates import LearnedRates

if TYPE_CHECKING:
    from .gradient_loop import GradientLoop


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
        if rule.decays:
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

    def run(self, loop: GradientLoop, params: Params, support: Any) -> Params:
        """The parameters after the steps of `loop`, with the gradient of the minimum."""
        return self.differentiable(loop, params, support, run(loop, detached(params), {}, support, None))

    def differentiable(self, loop: GradientLoop, params: Params, support: Any, end: Params) -> Params:
        """`end`, where the steps from `params` end, with the gradient of the minimum."""
        start = loop.init(params, support, None)
        context = loop.context(start, params, {}, support)
        last = step_number(loop.num_steps - 1, device_of(params))
        constants, put = opened((context, dict.fromkeys(loop.counters, last)))
        theta = {name: params[name] for name in loop.names}

        def residual(point: Tensors, constants: Tensors) -> Tensors:
            """The gradient of the support loss at `point`."""
            context, counters = put(constants)
            support_loss = loop.support_loss(context, counters, second_order=True)
            phi = dict(zip(theta, point))
            grads = gradient(support_loss, phi)
            return tuple(grads[name] if name in grads else 0 * p for name, p in phi.items())

        minimum = implicit(
            residual,
            tuple(end[name] for name in theta),
            tuple(theta.values()),
            constants,
            proximal=self.proximal,
            solver=self.solver,
            solver_steps=self.solver_steps,
            rate=self.rate(loop),
        )
        return {**params, **end, **dict(zip(theta, minimum)), **_unadapted(params, loop)}

    @staticmethod
    def rate(loop: GradientLoop) -> float:
        """The step size of the Neumann series."""
        lr = loop.adapter.lr
        assert not isinstance(lr, LearnedRates)
        return lr[-1]


def _unadapted(params: Params, loop: GradientLoop) -> Params:
    return {name: param for name, param in params.items() if name not in (*loop.names, *loop.counters)}
