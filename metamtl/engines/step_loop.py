"""All inner steps and the backward pass through them, in one call whose guards are checked once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..adapters.inner_loop import Carry, StepContext
from ..functional import Params
from ..functional.scan import carries, transpose
from . import compiled_parts
from .compiled_parts import StandIns
from .problem import TaskProblem

Function = Callable[..., Sequence[Tensor]]


class Part(NamedTuple):
    """The compiled code of one part, and the positions of its inputs among those of the whole graph."""

    function: Function
    positions: list[int]


class Run(NamedTuple):
    """One call of a `StepLoop`: what its backend needs.

    Attributes:
        sizes: the number of results of each part.
        loop: runs all inner steps, given the compiled parts and the inputs of the whole graph.
        results: receives what `loop` returns.
    """

    sizes: list[int]
    loop: Callable[[Sequence[Part], Sequence[Tensor]], Any]
    results: list[Any]


class StepLoop:
    """Compiled inner steps whose guards are checked once for all K steps.

    torch.compile traces `compiled_parts.parts`, one inner step, its vector-Jacobian product and the end, as
    one graph, and guards everything that they read. The backend compiles each part of the graph on its own;
    calling the graph runs the parts in a loop. Inputs that differ between steps are represented by
    stand-ins: tensors of the same shapes whose values are never read.

    Args:
        backend: the backend of torch.compile for each part.
        options: of torch.compile.
        first_orders: the values that `InnerLoop.first_order` takes over the steps.
    """

    def __init__(self, backend: Any, options: dict[str, Any], first_orders: tuple[bool, ...]) -> None:
        self.backend, self.first_orders = backend, first_orders
        self.call = torch.compile(compiled_parts.parts, backend=self._compile, **options)
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
    ) -> tuple[Params, Tensor, Carry, tuple[Params, Params, Any], int]:
        """Run all inner steps, the objective, and the backward pass through the steps.

        Returns:
            The gradient of the objective with respect to `shared` except through the steps; the query
            losses; the cotangents of `carry`, and of the context's parameters and features; the backward
            passes that one task takes.
        """
        flat, spec = tree_flatten(tree_map(torch.Tensor.contiguous, carry))
        _, spec_of_vjp = tree_flatten((carry, context.params, context.learned, context.features))
        stand_ins = self._stand_ins(flat, spec, ks[0])
        leaves = [tree_leaves(part) for part in (*stand_ins.steps, stand_ins.end, *stand_ins.vjps)]
        steps, end = range(problem.loop.num_steps), len(self.first_orders)
        variant = [self.first_orders.index(problem.loop.first_order(k)) for k in steps]

        def loop(compiled: Sequence[Part], inputs: Sequence[Tensor]) -> Any:
            values = list(inputs)
            position = {id(tensor): place for place, tensor in enumerate(values)}
            # None: the part does not read it.
            places = [[position.get(id(leaf)) for leaf in of_part] for of_part in leaves]

            def call(part: int, tensors: Sequence[Tensor]) -> list[Tensor]:
                for place, tensor in zip(places[part], tensors, strict=True):
                    if place is not None:
                        values[place] = tensor
                function, positions = compiled[part]
                return list(function(*[values[place] for place in positions]))

            def forward(carry: list[Tensor], context: Any, k: int) -> list[Tensor]:
                return call(variant[k], [*carry, ks[k]])

            def vjp(carry: list[Tensor], context: Any, k: int, cotangent: list[Tensor]) -> Any:
                found = call(end + 1 + variant[k], [*carry, ks[k], *cotangent])
                return found[: len(flat)], found[len(flat) :]

            stored = [flat, *carries(forward, flat, None, steps)]
            ended = call(end, [*stored.pop(), ks[-1]])
            return ended, *transpose(vjp, stored, None, steps, ended[len(shared) : -1])

        sizes = [len(flat)] * end + [len(shared) + len(flat) + 1] + [spec_of_vjp.num_leaves] * end
        run = self.current.run = Run(sizes, loop, [])
        try:
            _, evaluations = self.call(
                problem, batched, context, shared, *batches, self.first_orders, stand_ins
            )
        finally:
            del self.current.run
        if not run.results:
            raise RuntimeError("torch.compiler.set_stance replaces the code of the inner steps")
        ((ended, cotangent, total),) = run.results
        of_carry, *of_context = tree_unflatten([*cotangent, *total], spec_of_vjp)
        return dict(zip(shared, ended)), ended[-1], of_carry, tuple(of_context), evaluations

    def _stand_ins(self, flat: list[Tensor], spec: TreeSpec, k: Tensor) -> StandIns:
        """Other tensors of the same shapes, which share their memory."""

        def new() -> tuple[Carry, Tensor]:
            return tree_unflatten([leaf.detach() for leaf in flat], spec), k.detach()

        steps, vjps = ([new() for _ in self.first_orders] for _ in range(2))
        return StandIns(tuple(steps), new(), tuple((*vjp, new()[0]) for vjp in vjps))

    def _compile(self, graph: GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        """The backend: the function that torch.compile calls for `graph`."""
        sizes = self.current.run.sizes
        compiled = _split(graph, sizes, examples, torch._dynamo.lookup_backend(self.backend))

        def run_loop(*inputs: Tensor) -> tuple[None, ...]:
            run = self.current.run
            run.results.append(run.loop(compiled, inputs))
            return (None,) * sum(sizes)  # the results have been taken already

        return run_loop


def _split(
    graph: GraphModule, sizes: Sequence[int], examples: list[Tensor], compiler: Callable[..., Any]
) -> list[Part]:
    """The compiled parts of a graph; `sizes` are their numbers of outputs, which are the last of each."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    body = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    order, left = {node: place for place, node in enumerate(body)}, _outputs(graph)
    places = [order.get(node, -1) for node in left]
    if places != sorted(set(places)) or len(left) != sum(sizes):
        raise RuntimeError("the outputs of the compiled graph are not those of its parts, in their order")
    found: list[Part] = []
    first = 0
    for size in sizes:
        outputs, left = left[:size], left[size:]
        nodes = body[first : order[outputs[-1]] + 1]
        first += len(nodes)
        inside, new = set(nodes), Graph()
        read = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
        if any(node.op not in ("placeholder", "get_attr") for node in read):
            raise RuntimeError("a part of the compiled graph reads what another part computed")
        copies: dict[Node, Node] = {}
        places = [inputs.index(node) for node in read if node.op == "placeholder"]
        for node in sorted(read, key=lambda node: node.op != "placeholder"):
            copies[node] = new.node_copy(node)
        for node in nodes:
            copies[node] = new.node_copy(node, copies.__getitem__)
        new.output(tuple(copies[node] for node in outputs))
        function = compiler(GraphModule(graph, new), [examples[place] for place in places])
        found.append(Part(function, places))
    return found


def _outputs(graph: GraphModule) -> list[Node]:
    return list(next(node for node in graph.graph.nodes if node.op == "output").args[0])
