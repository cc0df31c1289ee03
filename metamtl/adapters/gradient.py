"""K gradient steps on the support set: MAML, FOMAML, ANIL, BOIL, Meta-SGD, iMAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params, named_by, structure_of, trainable
from ..functional.implicit import Solver
from ..functional.split import split
from ..losses import Loss
from ..rules import Descent, Rates, Rule
from .base import Adapter, initial_params
from .gradient_loop import GradientLoop
from .inner_loop import InnerLoop
from .minimum import Minimum
from .rates import LearnedRates, per_step_lr

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
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise TypeError(f"steps={steps!r}: the number of inner steps is an int.")
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
        self.lr = lr if isinstance(lr, LearnedRates) else per_step_lr(lr, steps)
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

    def inner_loop(self, model: nn.Module, loss: Loss, name: str | None = None) -> InnerLoop:
        if type(self).forward is not Gradient.forward:  # a subclass with a computation of its own
            return super().inner_loop(model, loss, name)
        names = tuple(named_by(model, self.adapts))
        structure = structure_of(model)
        parts = None if name is not None else split(model, names)
        others = [other for other in trainable(model) if other not in names]
        return GradientLoop(
            adapter=self,
            model=model,
            structure=structure,
            loss=loss,
            names=names,
            reads=tuple(other for other in others if parts is None or other in parts.reads),
            task=name,
            parts=parts,
            counters=structure.counters,
            num_steps=self.steps,
            starts_from_params=parts is None,
            proximal=0.0 if self.minimum is None else self.minimum.proximal,
        )

    def rates(self, params: Params, learned: Params, k: Tensor) -> Rates:
        """The step size of every parameter at step `k`; `learned` are the adapter's own parameters."""
        if isinstance(self.lr, LearnedRates):
            prefix = "lr.rates."
            return self.lr.at({n.removeprefix(prefix): p for n, p in learned.items()}, params, k)
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
        self.check(model, task)
        loop = self.inner_loop(model, loss, task if isinstance(task, str) else None)
        return loop.adapt(initial_params(model, params), dict(self.named_parameters()), support, None)

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
        self.check(model, task)
        loop = self.inner_loop(model, loss, task if isinstance(task, str) else None)
        return loop.path(initial_params(model, params), dict(self.named_parameters()), support, None)
