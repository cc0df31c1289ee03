"""K gradient steps on the support set: MAML, FOMAML, ANIL, BOIL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal

from torch import Tensor, nn
from torch.func import grad
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..episode import Batch
from ..functional import Params, forward, named_by, twice_differentiable
from ..recompute import Step, Tensors, recomputed
from ..task import Loss
from .base import Adapter, needed, start

Order = Literal["exact", "recompute", "truncated", "first"]
Measure = Callable[[Params, Batch], Tensor]
ORDERS = ("exact", "recompute", "truncated", "first")


class Gradient(Adapter):
    """K steps of gradient descent on the support loss.

    `phi_0 = theta`, `phi_{k+1} = phi_k - lr_k * grad L_support(phi_k)`, over the parameters that
    `adapts` names; the others stay. Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400;
    with `adapts="head"` ANIL (https://arxiv.org/abs/1909.09157), with `adapts="body"` BOIL
    (https://arxiv.org/abs/2008.08882).

    Args:
        steps: K; 0 adapts nothing.
        lr: the step size, or K of them.
        adapts: a prefix, or several, of parameter names (`"head"` takes `head.weight` and `head.bias`);
            all trainable parameters, where None.
        order: `"exact"` differentiates through the inner gradients. `"recompute"` gives the same gradient
            at flat memory: only each step's parameters are stored, and the backward pass computes one step
            at a time anew. `"first"` takes the inner gradients as constants (first-order MAML),
            `"truncated"` those of all but the `last` steps.
        last: for `"truncated"`, how many of the last steps are differentiated through.
        segment: for `"recompute"`, how many steps lie between stored parameters; about `sqrt(K)` stores
            least, for one more computation of every step.

    Raises:
        ValueError: negative `steps`, an unknown `order`, rates that are not K in number; when called,
            a prefix that names no parameter.

    >>> import torch
    >>> model, loss = nn.Linear(1, 1, bias=False), nn.functional.mse_loss
    >>> fast = Gradient(steps=1, lr=0.5)(model, (torch.ones(4, 1), torch.ones(4, 1)), loss)
    >>> bool(torch.isclose(fast["weight"], torch.ones(1)).all())  # the minimum, in one step
    True
    """

    def __init__(
        self,
        steps: int = 1,
        lr: float | Sequence[float] = 0.01,
        adapts: str | Iterable[str] | None = None,
        order: Order = "exact",
        *,
        last: int = 1,
        segment: int = 1,
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
        rates = tuple(lr) if isinstance(lr, Sequence) else (lr,) * steps
        if len(rates) != steps:
            raise ValueError(f"lr gives {len(rates)} rates for {steps} steps; give one number, or {steps}.")
        self.steps, self.lr, self.order = steps, rates, order
        self.last, self.segment = last, segment
        self.adapts = adapts if adapts is None or isinstance(adapts, str) else tuple(adapts)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, lr={self.lr}, adapts={self.adapts!r}, order={self.order!r}"

    @property
    def gradient_evaluations(self) -> int:
        # The outer gradient goes back once more through every inner gradient that it differentiates.
        return self.steps + sum(self.differentiates(step) for step in range(self.steps))

    def differentiates(self, step: int) -> bool:
        """Whether the outer gradient goes through the inner gradient of this step."""
        first = {"first": self.steps, "truncated": self.steps - self.last}.get(self.order, 0)
        return step >= first

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        named_by(model, self.adapts)

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        *_, end = self._stages(model, support, loss, params, task, self.segment)
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
        """The parameters after 0, 1, ..., K steps."""
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

        def measure(params: Params, batch: Batch) -> Tensor:
            return loss(forward(model, params, batch.x, task), batch.y)

        names = named_by(model, self.adapts)
        params = start(model, params)
        yield params
        for first in range(0, self.steps, stride):
            steps = range(first, min(first + stride, self.steps))
            run = self._recomputed if self.order == "recompute" else self._run
            params = {**params, **run(measure, params, names, needed(support, self), steps)}
            yield params

    def _run(
        self, measure: Measure, params: Params, names: Sequence[str], support: Batch, steps: range
    ) -> Params:
        """The adapted parameters after these steps."""
        for step in steps:
            constant = not self.differentiates(step)
            # Detached before the gradient is taken, not after, so that no graph is built for nothing.
            seen = {n: p.detach() for n, p in params.items()} if constant else params

            def support_loss(adapted: Params, seen: Params = seen) -> Tensor:
                return measure({**seen, **adapted}, support)

            with nullcontext() if constant else twice_differentiable():
                gradients = grad(support_loss)({name: seen[name] for name in names})
            moved = {name: params[name] - self.lr[step] * gradients[name] for name in names}
            params = {**params, **moved}
        return {name: params[name] for name in names}

    def _recomputed(
        self, measure: Measure, params: Params, names: Sequence[str], support: Batch, steps: range
    ) -> Params:
        """The same, storing `params` alone; while several steps are redone, those of each."""
        others = {name: param for name, param in params.items() if name not in names}
        leaves, spec = tree_flatten((others, support))
        at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def one(step: int) -> Step:
            def run(state: Tensors, constants: Tensors) -> Tensors:
                values = list(leaves)
                for i, tensor in zip(at, constants):
                    values[i] = tensor
                others, support = tree_unflatten(values, spec)
                given = {**others, **dict(zip(names, state))}
                return tuple(self._run(measure, given, names, support, range(step, step + 1)).values())

            return run

        state = tuple(params[name] for name in names)
        return dict(zip(names, recomputed([one(k) for k in steps], state, tuple(leaves[i] for i in at))))
