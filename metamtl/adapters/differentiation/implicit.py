"""Implicit differentiation: the gradient of the minimum to which the inner steps converge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    """Differentiate the minimum of the inner loss with the implicit function theorem: iMAML.

    Rajeswaran et al. 2019, https://arxiv.org/abs/1909.04630. The K steps minimize
    `L_support(phi) + proximal / 2 |phi - theta|^2`. The outer gradient is that of the exact minimum; its
    accuracy depends on how close the steps come to it. Memory does not grow with K.

    Args:
        proximal: weight of the penalty on the distance between phi and theta.
        solver: the solver of `(H + proximal I) v = cotangent`, where `H` is the Hessian of the support
            loss. "cg": conjugate gradients, for a positive definite matrix. "neumann": the series
            `sum_j (I - lr (H + proximal I))^j lr`. It diverges if an eigenvalue of the matrix is at least
            `2 / lr`, as gradient descent with this `lr` does.
        solver_steps: the number of products with H that the solver computes.

    Raises:
        ValueError: an option is out of range. In `Gradient`: the rates are learned (the minimum does not
            depend on them), or the rule has weight decay (which moves the minimum).
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
                f"Implicit: solver={self.solver!r}, solver_steps={self.solver_steps}: solver must be 'cg'"
                " or 'neumann', and solver_steps at least 1."
            )

    def check(self, lr: Any, rule: Rule, adapts: Any) -> None:
        if isinstance(lr, LearnedRates):
            raise ValueError(
                "Implicit with lr=LearnedRates(...): the minimum does not depend on the step sizes, so they"
                " would not be learned; pass numbers as lr, or use Unrolled()."
            )
        if isinstance(lr, Mapping) and self.solver == "neumann":
            raise ValueError(
                f"Implicit(solver='neumann') uses one step size, but lr={lr}; pass a number or solver='cg'."
            )
        if rule.decays:
            raise ValueError(
                f"Implicit with rule={rule}: with weight_decay, the steps do not converge to the minimum"
                " that is differentiated; add the penalty to the loss instead."
            )
        if self.proximal == 0 and adapts is None:
            raise ValueError(
                f"Implicit: proximal={self.proximal} must be positive. With 0, the minimum does not depend"
                " on the initial parameters, so only parameters outside of adapts= would be learned."
            )

    def second_order(self, k: int, steps: int) -> bool:
        return False

    def any_second_order(self, steps: int) -> bool:
        return steps > 0

    def adapt(self, loop: GradientLoop, params: Params, adapter_params: Params, support: Any) -> Params:
        if not loop.num_steps:
            return super().adapt(loop, params, adapter_params, support)
        end = run(loop, detached(params), {}, support, None)
        return self._differentiable(loop, params, support, end)

    def path(
        self, loop: GradientLoop, params: Params, adapter_params: Params, support: Any
    ) -> Iterator[Params]:
        if not loop.num_steps:
            yield from super().path(loop, params, adapter_params, support)
            return
        *stage_params, end = stages(loop, detached(params), {}, support, None)
        yield from stage_params
        yield self._differentiable(loop, params, support, end)

    def _differentiable(self, loop: GradientLoop, params: Params, support: Any, end: Params) -> Params:
        """`end`, the result of the steps from `params`, with the gradient of the minimum."""
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
            rate=0.0 if isinstance(lr, Mapping) else lr[-1],  # not used by the other solver
        )
        unadapted = {n: param for n, param in params.items() if n not in (*loop.names, *loop.counters)}
        return {**params, **end, **dict(zip(theta, minimum)), **unadapted}
