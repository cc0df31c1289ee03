"""K gradient steps on the support set: MAML, FOMAML, ANIL, BOIL, Meta-SGD, iMAML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils._pytree import tree_map

from ..episode import Batch
from ..functional import Params, at_step, named_by, twice_differentiable
from ..implicit import Solver
from ..rules import Descent, Rates, Rule
from ..split import from_first_change
from ..task import Loss
from .base import Adapter, needed, start
from .minimum import Minimum
from .rates import LearnedRates, numbers
from .unroll import Given, Measure, State, recomputing, unrolled

Order = Literal["exact", "recompute", "truncated", "first", "implicit"]
ORDERS = ("exact", "recompute", "truncated", "first", "implicit")


class Gradient(Adapter):
    """K steps of gradient descent on the support loss.

    `phi_0 = theta`, `phi_{k+1} = phi_k - lr_k * grad L_support(phi_k)`, over the parameters that
    `adapts` names; the others stay. Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400;
    with `adapts="head"` ANIL (https://arxiv.org/abs/1909.09157), with `adapts="body"` BOIL
    (https://arxiv.org/abs/2008.08882), with `lr=LearnedRates(...)` Meta-SGD or the rates of MAML++.

    Args:
        steps: K; 0 adapts nothing.
        lr: the step size, or K of them, or learned ones.
        adapts: a prefix, or several, of parameter names (`"head"` takes `head.weight` and `head.bias`);
            all trainable parameters, where None.
        order: `"exact"` differentiates through the inner gradients. `"recompute"` gives the same gradient
            at flat memory: only each step's parameters are stored, and the backward pass computes one step
            at a time anew. `"first"` takes the inner gradients as constants (first-order MAML),
            `"truncated"` those of all but the `last` steps. Learned rates and the decay of weights are
            differentiated in every step, whatever the order. `"implicit"` is iMAML, Rajeswaran et al. 2019,
            https://arxiv.org/abs/1909.04630: the K steps minimise
            `L_support(phi) + proximal / 2 |phi - theta|^2`, and the outer gradient is that of its minimum
            by the implicit function theorem, right as far as they reach it; memory does not grow with K.
        rule: of `metamtl.rules`; plain descent, where None.
        last: for `"truncated"`, how many of the last steps are differentiated through.
        segment: for `"recompute"`, how many steps lie between stored parameters; about `sqrt(K)` stores
            least, for one more computation of every step.
        proximal: for `"implicit"`, how strongly phi is held to theta.
        solver: for `"implicit"`, of `(H + proximal I) v = cotangent`, H being the Hessian of the support
            loss: `"cg"`, conjugate gradients, for a positive definite left side; `"neumann"`, the series
            `sum_j (I - lr (H + proximal I))^j lr`, which diverges where plain descent at this `lr` would:
            from an eigenvalue of `2 / lr` on.
        solver_steps: products with H that the solver takes.

    Raises:
        ValueError: arguments out of range, an unknown `order`, rates that are not K in number; with
            `"implicit"`, what a minimum does not depend on (learned rates) or what moves it (a rule's
            decay of weights); when called, a prefix that names no parameter, or learned rates for others.

    >>> import torch
    >>> model, loss = nn.Linear(1, 1, bias=False), nn.functional.mse_loss
    >>> fast = Gradient(steps=1, lr=0.5)(model, (torch.ones(4, 1), torch.ones(4, 1)), loss)
    >>> bool(torch.isclose(fast["weight"], torch.ones(1)).all())  # the minimum, in one step
    True
    """

    def __init__(
        self,
        steps: int = 1,
        lr: float | Sequence[float] | LearnedRates = 0.01,
        adapts: str | Iterable[str] | None = None,
        order: Order = "exact",
        *,
        rule: Rule | None = None,
        last: int = 1,
        segment: int = 1,
        proximal: float = 1.0,
        solver: Solver = "cg",
        solver_steps: int = 5,
    ) -> None:
        super().__init__()
        if steps < 0:
            raise ValueError(f"steps={steps}: the number of inner steps cannot be negative.")
        if order not in ORDERS:
            raise ValueError(f"order={order!r} is not one of {', '.join(map(repr, ORDERS))}.")
        if last < 0 or segment < 1:
            raise ValueError(
                f"last={last}, segment={segment}: last must be at least 0, segment at least 1."
            )
        self.rule = Descent() if rule is None else rule
        if not isinstance(self.rule, Rule):
            raise ValueError(
                f"rule={rule!r} is no rule; give one of metamtl.rules, as rules.SGD(momentum=0.9)."
            )
        self.lr = lr if isinstance(lr, LearnedRates) else numbers(lr, steps)
        self.minimum = Minimum(proximal, solver, solver_steps) if order == "implicit" else None
        if self.minimum is not None:
            self.minimum.check(lr, self.rule, adapts)
        self.steps, self.order = steps, order
        self.last, self.segment = last, segment
        self.adapts = adapts if adapts is None or isinstance(adapts, str) else tuple(adapts)

    def __repr__(self) -> str:
        parts = [f"steps={self.steps}, lr={self.lr}, adapts={self.adapts!r}, order={self.order!r}"]
        if not isinstance(self.rule, Descent):
            parts.append(f"rule={self.rule}")
        if self.order == "truncated":
            parts.append(f"last={self.last}")
        if self.minimum is not None:
            parts.append(f"minimum={self.minimum}")
        return f"Gradient({', '.join(parts)})"

    @property
    def gradient_evaluations(self) -> int:
        if self.minimum is not None:
            # At the minimum one gradient, its products with vectors, and one for the other parameters.
            return self.steps + 1 + self.minimum.solver_steps + (self.adapts is not None)
        # The outer gradient goes back once more through every inner gradient that it differentiates.
        return self.steps + sum(self.differentiates(step) for step in range(self.steps))

    def differentiates(self, step: int) -> bool:
        """Whether the outer gradient goes through the inner gradient of this step."""
        first = {"truncated": self.steps - self.last, "exact": 0, "recompute": 0}
        return step >= first.get(self.order, self.steps)

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        names = named_by(model, self.adapts)
        if isinstance(self.lr, LearnedRates):
            self.lr.check(model, names, self.steps)

    def begin(self, model: nn.Module, params: Params) -> State:
        """The state before the first step, with `params` the adapted parameters."""
        return State(params, self.rule.begin(params))

    def step(
        self,
        measure: Measure,
        state: State,
        others: Params,
        support: Batch,
        learned: Params,
        k: Tensor,
        *,
        constant: bool = False,
    ) -> State:
        """Inner step `k`, a pure function of its arguments.

        Args:
            measure: `measure(params, batch) -> scalar`, the task's loss.
            state: the adapted parameters, and what the rule carries.
            others: the parameters that are not adapted, and the counters of `functional.at_step`.
            support: the support set.
            learned: the adapter's own parameters by name.
            k: which step, an int64 tensor without axes.
            constant: take the inner gradient as a constant.
        """
        # Detached before the gradient is taken, not after, so that no graph is built for nothing.
        given = state.params, others, support
        seen, fixed, support = _detached(given) if constant else given
        with nullcontext() if constant else twice_differentiable():
            gradients = grad(lambda params: measure({**fixed, **params}, support))(seen)
        rates = self._rates(state.params, learned, k)
        return State(*self.rule.step(state.params, gradients, state.memory, rates, k))

    def _rates(self, params: Params, learned: Params, k: Tensor) -> Rates:
        """The step size of every parameter at step `k`."""
        if isinstance(self.lr, LearnedRates):
            return self.lr.at({name.removeprefix("lr."): p for name, p in learned.items()}, params, k)
        if len(set(self.lr)) == 1:  # a Python number multiplies faster than a tensor
            return dict.fromkeys(params, self.lr[0])
        like = next(iter(params.values()))
        rates = torch.tensor(self.lr, dtype=like.dtype, device="cpu").to(like.device, non_blocking=True)
        return dict.fromkeys(params, rates.index_select(0, k.reshape(1)).squeeze(0))

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        *_, end = self._stages(model, support, loss, params, task, max(self.steps, 1))
        return end

    def path(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Iterator[Params]:
        """The parameters after 0, 1, ..., K steps; for `"implicit"`, those on the way without gradient."""
        return self._stages(model, support, loss, params, task, 1)

    def _stages(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        params: Params | None,
        task: Any,
        stride: int,
    ) -> Iterator[Params]:
        """The parameters after every `stride` steps, the start and the end among them."""
        self.check(model, task)
        params = start(model, params)
        state = self.begin(model, {name: params[name] for name in named_by(model, self.adapts)})
        others = {name: param for name, param in params.items() if name not in state.params}

        def shown(k: int) -> Params:
            return at_step(model, {**params, **state.params}, _count(k, params))

        yield shown(0)
        if self.steps == 0:
            return
        with nullcontext() if self.order == "first" else twice_differentiable():
            seen, measure = from_first_change(
                model, list(state.params), params, needed(support, self), loss, task
            )
        run = self._way_back(model, measure, state.params)
        for first in range(0, self.steps, stride):
            given = Given(others, seen, dict(self.named_parameters()))
            steps = range(first, min(first + stride, self.steps))
            state = run(state, given, steps)
            yield shown(steps.stop)

    def _way_back(self, model: nn.Module, measure: Measure, origin: Params) -> Callable[..., State]:
        """`run(state, given, steps) -> state`, differentiable as `order` says."""

        def advance(measure: Measure, state: State, given: Given, k: int) -> State:
            count, constant = _count(k, state.params), not self.differentiates(k)
            others = at_step(model, given.others, count)
            return self.step(measure, state, others, given.support, given.learned, count, constant=constant)

        def minimised(state: State, given: Given, steps: range) -> State:
            assert self.minimum is not None and not isinstance(self.lr, LearnedRates)
            last = steps.stop == self.steps
            at_end = at_step(model, given.others, _count(self.steps - 1, origin))
            given = given._replace(others=at_end)
            return self.minimum.run(advance, measure, origin, self.lr[-1], state, given, steps, last)

        if self.minimum is not None:
            return minimised
        if self.order == "recompute":
            return partial(recomputing, partial(advance, measure), segment=self.segment)
        return partial(unrolled, partial(advance, measure))


def _detached(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)


def _count(k: int, params: Params) -> Tensor:
    """`k` as a tensor, on the device of `params` and without waiting for it."""
    device = next((param.device for param in params.values()), None)
    return torch.full((), k, dtype=torch.int64, device=device)
