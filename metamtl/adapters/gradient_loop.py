"""The inner loop of `Gradient` as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

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
from ..functional.counter_random import uniform
from ..functional.differentiate import detached, in_transform
from ..functional.split import Part, Split
from ..losses import Loss
from .base import require_support
from .inner_loop import Carry, InnerLoop, Leftovers, Start, StepContext, device_of, step_number

if TYPE_CHECKING:
    from .gradient import Gradient


@dataclass(frozen=True)
class GradientLoop(InnerLoop):
    """`phi_{k+1} = rule(phi_k, grad L_support(phi_k))`; the carry is `(phi, state of the rule)`.

    Attributes:
        names: the names of the adapted parameters.
        task: the name of a named task, or None.
        parts: the model, split before the first adapted parameter, or None.
        counters: names of the buffers that hold the index of the step.
        proximal: weight of the term `1/2 |phi - theta|^2`, which is added to the support loss.
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
            # The inner gradient is a partial derivative, but one parameter may have been computed from
            # another (a head of class means). Views separate them.
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

    def adapt(self, params: Params, adapter_params: Params, support: Batch | None, task: Any) -> Params:
        with self._kernels():
            return self.adapter.differentiation.adapt(self, params, adapter_params, support)

    def path(
        self, params: Params, adapter_params: Params, support: Batch | None, task: Any
    ) -> Iterator[Params]:
        with self._kernels():
            yield from self.adapter.differentiation.path(self, params, adapter_params, support)

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
        grads = gradient(support_loss, {name: params[name] for name in self.names}, differentiable=False)
        return [name for name in self.names if name not in grads]

    def step(self, carry: Carry, context: StepContext, k: Tensor, *, first_order: bool) -> Carry:
        adapted, opt_state = carry
        # Detach before computing the gradient, not after, so that no unused graph is recorded.
        phi, fixed_context = detached((adapted, context)) if first_order else (adapted, context)
        support_loss = self.support_loss(
            self._batch(fixed_context, k), dict.fromkeys(self.counters, k), second_order=not first_order
        )
        grads = gradient(support_loss, phi, differentiable=not first_order)
        if not grads:
            raise ValueError(
                f"the support loss depends on none of the adapted parameters {', '.join(self.names[:5])};"
                " look for a detach() in its computation, or adapt other parameters."
            )
        if self.proximal:
            origin = context.features[1]
            grads = {n: g + self.proximal * (phi[n] - origin[n]) for n, g in grads.items()}
        return self._update(adapted, grads, opt_state, context.adapter_params, k)

    def _batch(self, context: StepContext, k: Tensor) -> StepContext:
        """The context with the support examples of step `k`."""
        size, (x, y) = self.adapter.batch_size, context.fixed
        if size is None:
            return context
        inputs = x if self.parts is None else context.features[0]
        examples = len(tree_leaves(y)[0])
        index = shuffled(self.adapter.seed, k, size, examples)

        def select(leaf: Any) -> Any:  # other leaves have no axis of examples
            has_examples = isinstance(leaf, Tensor) and leaf.shape[:1] == (examples,)
            return leaf.index_select(0, index) if has_examples else leaf

        inputs, y = tree_map(select, inputs), tree_map(select, y)
        if self.parts is None:
            return context._replace(fixed=(inputs, y))
        return context._replace(features=(inputs, *context.features[1:]), fixed=(x, y))

    def support_loss(
        self, context: StepContext, counters: Params, *, second_order: bool
    ) -> Callable[[Params], Tensor]:
        """The loss on the support set as a function of the adapted parameters."""
        x, y = context.fixed
        inputs, part = (x, None) if self.parts is None else (context.features[0], self.parts.remainder)

        def support_loss(phi: Params) -> Tensor:
            params = {**context.params, **phi, **counters}
            # Use views of the inputs. The parameters depend on the same inputs through earlier steps, so a
            # model that differentiates with respect to its input would also differentiate through them.
            if isinstance(inputs, Tensor):
                views = inputs.view_as(inputs)
            else:
                views = inputs if in_transform() else tree_map(_view, inputs)
            return self.loss(self._forward(params, views, part, second_order), y)

        return support_loss

    def _update(
        self, adapted: Params, grads: Params, opt_state: Any, adapter_params: Params, k: Tensor
    ) -> Carry:
        rule, rates = self.adapter.rule, self.adapter.rates(adapted, adapter_params, k)
        options = {
            name.removeprefix("rule."): p for name, p in adapter_params.items() if name.startswith("rule.")
        }
        with substituted(rule, structure_of(rule), options) if options else nullcontext():
            return tuple(rule.update(adapted, grads, opt_state, rates, k))

    def finish(self, carry: Carry, params: Params, k: Tensor) -> Params:
        return {**params, **carry[0], **dict.fromkeys(self.counters, k)}

    def first_order(self, k: int) -> bool:
        return not self.adapter.differentiation.second_order(k, self.num_steps)

    def _forward(self, params: Params, x: Any, part: Part | None, second_order: bool) -> Any:
        return forward(
            self.model,
            params if part is None else part.select(params),
            x,
            self.task,
            structure=self.structure if part is None else part.structure,
            second_order=second_order,
            stages=None if part is None else part.stages,
            leftovers=self.leftovers,
        )


def shuffled(seed: int, k: Tensor, size: int, examples: int) -> Tensor:
    """The positions of the examples of step `k`, `[size]`: passes over all examples, each shuffled."""
    position = k * size + torch.arange(size, device=k.device)
    first = k * size // examples
    passes = size // examples + 2  # the largest number of passes that a step touches
    orders = [uniform((seed, first + i), (examples,), device=k.device).argsort() for i in range(passes)]
    return torch.cat(orders).index_select(0, position - first * examples)


def _view(leaf: Any) -> Any:
    return leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf
