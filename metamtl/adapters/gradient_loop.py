"""The inner loop of `Gradient` as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..episode import Batch
from ..functional import (
    Params,
    Structure,
    forward,
    gradient,
    structure_of,
    substituted,
    vmap_compatible_kernels,
)
from ..functional.differentiate import detached, in_transform
from ..functional.split import Split
from ..losses import Loss
from .base import require_support
from .inner_loop import Carry, InnerLoop, Leftovers, Start, StepContext, device_of, step_number

if TYPE_CHECKING:
    from .gradient import Gradient


@dataclass(frozen=True)
class GradientLoop(InnerLoop):
    """`phi_{k+1} = rule(phi_k, grad L_support(phi_k))`; the carry is `(phi, state of the rule)`.

    Attributes:
        names: of the adapted parameters.
        task: the name of a named task, or None.
        parts: the model split before the first adapted parameter, or None.
        counters: names of the buffers that hold the number of the step.
        proximal: weight of `1/2 |phi - theta|^2` beside the support loss.
    """

    adapter: Gradient
    model: nn.Module
    structure: Structure
    loss: Loss
    names: tuple[str, ...]
    reads: tuple[str, ...]
    task: Any
    parts: Split | None
    counters: tuple[str, ...]
    num_steps: int
    starts_from_params: bool
    proximal: float = 0.0
    leftovers: Leftovers = ()

    def init(self, params: Params, support: Batch | None, task: Any) -> Start:
        adapted = {name: params[name] for name in self.names}
        if not in_transform() and not all(param.is_leaf for param in adapted.values()):
            # One may have been computed from another (a head of class means), and the inner gradient is a
            # partial derivative.
            adapted = {name: param.view_as(param) for name, param in adapted.items()}
        carry = (adapted, self.adapter.rule.init(adapted))
        if self.num_steps == 0:
            return Start(carry, ())
        x = require_support(support, self.adapter).x
        origin = detached(adapted) if self.proximal else ()
        if self.parts is None:
            return Start(carry, ((), origin))
        second_order = not all(map(self.first_order, range(self.num_steps)))
        return Start(carry, (self._forward(params, x, self.parts.stem, second_order), origin))

    def adapt(self, params: Params, learned: Params, support: Batch | None, task: Any) -> Params:
        with self._kernels():
            return self.adapter.differentiation.adapt(self, params, learned, support)

    def path(self, params: Params, learned: Params, support: Batch | None, task: Any) -> Iterator[Params]:
        with self._kernels():
            yield from self.adapter.differentiation.path(self, params, learned, support)

    def _kernels(self) -> AbstractContextManager[None]:
        second_order = self.adapter.differentiation.any_second_order(self.num_steps)
        return (
            vmap_compatible_kernels()
            if second_order and not torch.compiler.is_compiling()
            else nullcontext()
        )

    def with_leftovers(self, leftovers: Leftovers) -> GradientLoop:
        return replace(self, leftovers=leftovers)

    def fixed(self, support: Batch | None) -> Any:
        if self.num_steps == 0:
            return ()
        x, y = require_support(support, self.adapter)
        return (x if self.parts is None else None), y

    def unused(self, params: Params, support: Batch | None, task: Any) -> list[str]:
        context = self.context(self.init(params, support, task), params, {}, support)
        numbers = dict.fromkeys(self.counters, step_number(0, device_of(params)))
        support_loss = self.support_loss(context, numbers, second_order=False)
        used = gradient(support_loss, {name: params[name] for name in self.names}, differentiable=False)
        return [name for name in self.names if name not in used]

    def step(self, carry: Carry, context: StepContext, k: Tensor, *, first_order: bool) -> Carry:
        adapted, opt_state = carry
        # Detached before the gradient is taken, not after, so that no graph is recorded for nothing.
        here, read = detached((adapted, context)) if first_order else (adapted, context)
        support_loss = self.support_loss(
            read, dict.fromkeys(self.counters, k), second_order=not first_order
        )
        grads = gradient(support_loss, here, differentiable=not first_order)
        if not grads:
            raise ValueError(
                f"the support loss depends on none of the adapted parameters {', '.join(self.names[:5])};"
                " look for a detach() on the way to it, or adapt other parameters."
            )
        if self.proximal:
            origin = context.features[1]
            grads = {n: g + self.proximal * (here[n] - origin[n]) for n, g in grads.items()}
        return self._update(adapted, grads, opt_state, context.learned, k)

    def support_loss(
        self, context: StepContext, counters: Params, *, second_order: bool
    ) -> Callable[[Params], Tensor]:
        """The loss on the support set as a function of the adapted parameters."""
        x, y = context.fixed
        inputs, stages = (x, None) if self.parts is None else (context.features[0], self.parts.remainder)

        def support_loss(phi: Params) -> Tensor:
            params = {**context.params, **phi, **counters}
            # Views, because a model that differentiates with respect to its input would otherwise go back
            # through the parameters, too, which the steps before computed from the same input.
            if isinstance(inputs, Tensor):
                own = inputs.view_as(inputs)
            else:
                own = inputs if in_transform() else tree_map(_view, inputs)
            return self.loss(self._forward(params, own, stages, second_order), y)

        return support_loss

    def _update(self, adapted: Params, grads: Params, opt_state: Any, learned: Params, k: Tensor) -> Carry:
        rule, rates = self.adapter.rule, self.adapter.rates(adapted, learned, k)
        own = {name.removeprefix("rule."): p for name, p in learned.items() if name.startswith("rule.")}
        with substituted(rule, structure_of(rule), own) if own else nullcontext():
            return tuple(rule.update(adapted, grads, opt_state, rates, k))

    def finish(self, carry: Carry, params: Params, k: Tensor) -> Params:
        return {**params, **carry[0], **dict.fromkeys(self.counters, k)}

    def first_order(self, k: int) -> bool:
        return not self.adapter.differentiation.second_order(k, self.num_steps)

    def _forward(
        self, params: Params, x: Any, stages: tuple[nn.Module, ...] | None, second_order: bool
    ) -> Any:
        return forward(
            self.model,
            params,
            x,
            self.task,
            structure=self.structure,
            second_order=second_order,
            stages=stages,
            leftovers=self.leftovers,
        )


def _view(leaf: Any) -> Any:
    return leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf
