"""Implicit differentiation: the gradient of the minimum that the inner steps approach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...functional import Params, gradient
from ...functional.differentiate import detached
from ...functional.implicit import Solver, implicit
from ...functional.scan import Tensors, opened
from ...rules import Rule
from ..inner_loop import device_of, run, stages, step_number
from ..rates import LearnedRates
from .base import Differentiation

if TYPE_CHECKING:
    from ..gradient_loop import GradientLoop


@dataclass(frozen=True)
class Implicit(Differentiation):
    """Differentiate the minimum that the steps approach, by the implicit function theorem: iMAML.

    Rajeswaran et al. 2019, https://arxiv.org/abs/1909.04630. The K steps minimize
    `L_support(phi) + proximal / 2 |phi - theta|^2`. The outer gradient is that of the exact minimum; it is
    accurate as far as the steps reach it. Memory does not grow with K.

    Args:
        proximal: how strongly phi is held to theta.
        solver: of `(H + proximal I) v = cotangent`, with `H` the Hessian of the support loss. "cg":
            conjugate gradients, for a positive definite left side. "neumann": the series
            `sum_j (I - lr (H + proximal I))^j lr`, which diverges from an eigenvalue of `2 / lr` on, as
            gradient descent at this `lr` does.
        solver_steps: products with H that the solver computes.

    Raises:
        ValueError: options out of range; in `Gradient`, learned rates (the minimum does not depend on them)
            or a rule with weight decay (which moves the minimum).
    """

    runs_compiled: ClassVar[bool] = False

    proximal: float = 1.0  # type: ignore[misc]
    solver: Solver = "cg"
    solver_steps: int = 5

    def __post_init__(self) -> None:
        if self.proximal < 0:
            raise ValueError(f"Implicit: proximal={self.proximal} must be positive.")
        if self.solver not in ("cg", "neumann") or self.solver_steps < 1:
            raise ValueError(
                f"Implicit: solver={self.solver!r}, solver_steps={self.solver_steps}: solver is 'cg' or"
                " 'neumann', solver_steps at least 1."
            )

    def check(self, lr: Any, rule: Rule, adapts: Any) -> None:
        if isinstance(lr, LearnedRates):
            raise ValueError(
                "Implicit with lr=LearnedRates(...): the minimum does not depend on the step sizes, so they"
                " would not be learned; pass numbers as lr, or use Unrolled()."
            )
        if rule.decays:
            raise ValueError(
                f"Implicit with rule={rule}: its weight_decay moves the point where the steps end away from"
                " the minimum that is differentiated; put the penalty into the loss."
            )
        if self.proximal == 0 and adapts is None:
            raise ValueError(
                f"Implicit: proximal={self.proximal} must be positive. At 0 the minimum does not depend on"
                " where the steps start, so that only parameters outside of adapts= would be learned."
            )

    def second_order(self, k: int, steps: int) -> bool:
        return False

    def any_second_order(self, steps: int) -> bool:
        return steps > 0

    def gradient_evaluations(self, steps: int, all_adapted: bool) -> int:
        # At the minimum one gradient, its products with vectors, and one for the other parameters.
        return steps + 1 + self.solver_steps + (not all_adapted)

    def adapt(self, loop: GradientLoop, params: Params, learned: Params, support: Any) -> Params:
        if not loop.num_steps:
            return super().adapt(loop, params, learned, support)
        end = run(loop, detached(params), {}, support, None)
        return self._differentiable(loop, params, support, end)

    def path(self, loop: GradientLoop, params: Params, learned: Params, support: Any) -> Iterator[Params]:
        if not loop.num_steps:
            yield from super().path(loop, params, learned, support)
            return
        *before, end = stages(loop, detached(params), {}, support, None)
        yield from before
        yield self._differentiable(loop, params, support, end)

    def _differentiable(self, loop: GradientLoop, params: Params, support: Any, end: Params) -> Params:
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

        lr = loop.adapter.lr
        assert not isinstance(lr, LearnedRates)
        minimum = implicit(
            residual,
            tuple(end[name] for name in theta),
            tuple(theta.values()),
            constants,
            proximal=self.proximal,
            solver=self.solver,
            solver_steps=self.solver_steps,
            rate=lr[-1],
        )
        unadapted = {n: param for n, param in params.items() if n not in (*loop.names, *loop.counters)}
        return {**params, **end, **dict(zip(theta, minimum)), **unadapted}
