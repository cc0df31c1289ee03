"""All inner steps and the backward pass through them, in one compiled call that checks its guards once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..adapters.inner_loop import Carry, StepContext
from ..functional import Params
from ..functional.scan import carries, transpose
from . import compiled_parts
from .graph_parts import Part, compile_parts
from .problem import TaskProblem


class StandIns(NamedTuple):
    """The arguments of `parts` that differ between inner steps.

    Attributes:
        steps: the carry and the index of the step, for each of `first_orders`.
        end: the carry and the number of steps.
        vjps: the carry, the index of the step and the cotangent of its result, for each of `first_orders`.
    """

    steps: tuple[tuple[Carry, Tensor], ...]
    end: tuple[Carry, Tensor]
    vjps: tuple[tuple[Carry, Tensor, Carry], ...]


def parts(
    problem: TaskProblem,
    batched: bool,
    context: StepContext,
    shared: Params,
    support: Any,
    query: Any,
    first_orders: tuple[bool, ...],
    inputs: StandIns,
) -> list[list[Tensor]]:
    """The parts that `StepLoop` runs: `step` for each of `first_orders`, `end`, and `step_vjp` for each.

    Each part ends with contiguous copies of its results, which the next call uses as inputs.

    Returns:
        The tensors of each part.
    """
    results: list[list[Tensor]] = []
    for first_order, (carry, k) in zip(first_orders, inputs.steps):
        results.append(_copies(compiled_parts.step(problem, batched, carry, context, k, first_order)))
    end_result = compiled_parts.end(problem, batched, inputs.end[0], shared, inputs.end[1], support, query)
    results.append(_copies(end_result))
    for first_order, (carry, k, cotangent) in zip(first_orders, inputs.vjps):
        vjp = compiled_parts.step_vjp(problem, batched, carry, context, k, first_order, cotangent)
        results.append(_copies(vjp))
    return results


def _copies(result: Any) -> list[Tensor]:
    return [leaf.clone(memory_format=torch.contiguous_format) for leaf in tree_leaves(result)]


class Run(NamedTuple):
    """One call of a `StepLoop`: the values that its backend needs.

    Attributes:
        sizes: the number of results of each part.
        loop: a function of the compiled parts and the inputs of the whole graph that runs all inner steps.
        results: the list to which the result of `loop` is appended.
    """

    sizes: list[int]
    loop: Callable[[Sequence[Part], Sequence[Tensor]], Any]
    results: list[Any]


class StepLoop:
    """Compiled inner steps whose guards are checked once for all K steps.

    torch.compile traces `parts` (one inner step, its vector-Jacobian product, and the end) as one graph,
    and guards every value that they read. The backend compiles each part of the graph separately, and a
    call of the graph runs the parts in a loop. Placeholders represent the inputs that differ between steps:
    tensors of the same shapes whose values are never read.

    Args:
        backend: the backend of torch.compile for each part.
        options: the options of torch.compile.
        first_orders: the distinct values of `InnerLoop.first_order` over the steps.
    """

    def __init__(self, backend: Any, options: dict[str, Any], first_orders: tuple[bool, ...]) -> None:
        self.backend, self.first_orders = backend, first_orders
        self.call = torch.compile(parts, backend=self._compile, **options)
        self.current = threading.local()  # its attribute `run` is a `Run`

    def __call__(
        self,
        problem: TaskProblem,
        batched: bool,
        carry: Carry,
        context: StepContext,
        shared: Params,
        batches: tuple[Any, Any],
        ks: Sequence[Tensor],
    ) -> tuple[Params, Tensor, Carry, tuple[Params, Params, Any]]:
        """Run all inner steps, the objective, and the backward pass through the steps.

        Returns:
            The gradient of the objective with respect to `shared`, excluding its part through the steps;
            the query losses; the cotangents of `carry`, and of the parameters and features of `context`.
        """
        flat, spec = tree_flatten(tree_map(torch.Tensor.contiguous, carry))
        _, spec_of_vjp = tree_flatten((carry, context.params, context.adapter_params, context.features))
        stand_ins = self._stand_ins(flat, spec, ks[0])
        leaves = [tree_leaves(part) for part in (*stand_ins.steps, stand_ins.end, *stand_ins.vjps)]
        steps, end = range(problem.loop.num_steps), len(self.first_orders)
        variant = [self.first_orders.index(problem.loop.first_order(k)) for k in steps]

        def loop(compiled: Sequence[Part], inputs: Sequence[Tensor]) -> Any:
            values = list(inputs)
            index_of = {id(tensor): index for index, tensor in enumerate(values)}
            # None: the part does not read this input.
            indices = [[index_of.get(id(leaf)) for leaf in part_leaves] for part_leaves in leaves]

            def call(part: int, tensors: Sequence[Tensor]) -> list[Tensor]:
                for index, tensor in zip(indices[part], tensors, strict=True):
                    if index is not None:
                        values[index] = tensor
                function, positions = compiled[part]
                return list(function(*[values[index] for index in positions]))

            def forward(carry: list[Tensor], context: Any, k: int) -> list[Tensor]:
                return call(variant[k], [*carry, ks[k]])

            def vjp(carry: list[Tensor], context: Any, k: int, cotangent: list[Tensor]) -> Any:
                cotangents = call(end + 1 + variant[k], [*carry, ks[k], *cotangent])
                return cotangents[: len(flat)], cotangents[len(flat) :]

            all_carries = [flat, *carries(forward, flat, None, steps)]
            end_result = call(end, [*all_carries.pop(), ks[-1]])
            return end_result, *transpose(vjp, all_carries, None, steps, end_result[len(shared) : -1])

        sizes = [len(flat)] * end + [len(shared) + len(flat) + 1] + [spec_of_vjp.num_leaves] * end
        run = self.current.run = Run(sizes, loop, [])
        try:
            self.call(problem, batched, context, shared, *batches, self.first_orders, stand_ins)
        finally:
            del self.current.run
        if not run.results:
            raise RuntimeError("torch.compiler.set_stance replaces the code of the inner steps")
        ((end_result, cotangent, total),) = run.results
        carry_grads, *context_grads = tree_unflatten([*cotangent, *total], spec_of_vjp)
        shared_grads, losses = dict(zip(shared, end_result)), end_result[-1]
        return shared_grads, losses, carry_grads, tuple(context_grads)

    def _stand_ins(self, flat: list[Tensor], spec: TreeSpec, k: Tensor) -> StandIns:
        """Distinct tensor objects of the same shapes, which share their memory."""

        def placeholders() -> tuple[Carry, Tensor]:
            return tree_unflatten([leaf.detach() for leaf in flat], spec), k.detach()

        steps, vjps = ([placeholders() for _ in self.first_orders] for _ in range(2))
        return StandIns(tuple(steps), placeholders(), tuple((*vjp, placeholders()[0]) for vjp in vjps))

    def _compile(self, graph: GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        """The backend: the function that torch.compile calls for `graph`."""
        sizes = self.current.run.sizes
        compiled = compile_parts(graph, sizes, examples, torch._dynamo.lookup_backend(self.backend))

        def run_loop(*inputs: Tensor) -> tuple[None, ...]:
            run = self.current.run
            run.results.append(run.loop(compiled, inputs))
            return (None,) * sum(sizes)  # the results are already in `run.results`

        return run_loop
