"""All inner steps and the way back through them, in one call whose guards are checked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..adapters.inner_loop import Carry, StepContext
from ..functional import Params
from ..functional.scan import carries, transpose
from . import compiled_parts
from .compiled_parts import StandIns
from .problem import TaskProblem

Function = Callable[..., Sequence[Tensor]]


class Part(NamedTuple):
    """The compiled code of one part, and what selects its inputs from those of the whole graph."""

    function: Function
    select: Callable[[list[Tensor]], tuple[Tensor, ...]]


class StepLoop:
    """`compiled_parts.parts` under torch.compile, which runs its parts K times.

    torch.compile traces one inner step, its vector-Jacobian product and the end into one graph, and guards
    everything that they read. This is its backend: it compiles each part of the graph by itself, and a
    call of the graph runs the loop over them. The inputs that change from step to step are stand-ins, which
    no part ever reads.

    Args:
        backend: what compiles the parts, a backend of torch.compile.
        options: of torch.compile.
        orders: whether the steps are of first order; both, where some are.
    """

    def __init__(self, backend: str, options: dict[str, Any], orders: tuple[bool, ...]) -> None:
        self.backend, self.orders = backend, orders
        self.call = torch.compile(compiled_parts.parts, backend=self._compile, **options)
        self.stand_ins: StandIns | None = None
        self.leaves: list[list[Tensor]] = []  # of the stand-ins of each part
        self._run: Callable[[Sequence[Part], Sequence[Tensor]], Any] | None = None
        self._result: Any = None
        self._sizes: list[int] = []

    def __call__(
        self,
        problem: TaskProblem,
        batched: bool,
        carry: Carry,
        context: StepContext,
        shared: Params,
        batches: tuple[Any, Any],
        numbers: Sequence[Tensor],
    ) -> tuple[Params, Tensor, Carry, tuple[Params, Params, Any]]:
        """The gradient of the objective and the query losses; then the cotangents, by `transpose`.

        Returns:
            The part of the gradient that does not go through the steps; the losses; the cotangents of the
            first carry, and of the context's parameters and features.
        """
        carry = tree_map(torch.Tensor.contiguous, carry)
        flat = tree_leaves(carry)
        _, spec_of_back = tree_flatten((carry, context.params, context.learned, context.features))
        if self.stand_ins is None:
            self.stand_ins = _stand_ins(carry, numbers[0], len(self.orders))
            parts = (*self.stand_ins.steps, self.stand_ins.end, *self.stand_ins.backs)
            self.leaves = [tree_leaves(part) for part in parts]
        stand_ins, steps = self.stand_ins, range(problem.loop.num_steps)
        which = [self.orders.index(problem.loop.first_order(k)) for k in steps]

        def run(compiled: Sequence[Part], inputs: Sequence[Tensor]) -> Any:
            values = list(inputs)
            position = {id(tensor): place for place, tensor in enumerate(values)}
            # None: no part reads it.
            changing = [[position.get(id(leaf)) for leaf in leaves] for leaves in self.leaves]

            def call(part: int, tensors: Sequence[Tensor]) -> list[Tensor]:
                for place, tensor in zip(changing[part], tensors):
                    if place is not None:
                        values[place] = tensor
                function, select = compiled[part]
                return list(function(*select(values)))

            def forward(carry: list[Tensor], context: Any, k: int) -> list[Tensor]:
                return call(which[k], [*carry, numbers[k]])

            def back(carry: list[Tensor], context: Any, k: int, cotangent: list[Tensor]) -> Any:
                found = call(len(self.orders) + 1 + which[k], [*carry, numbers[k], *cotangent])
                return found[: len(flat)], found[len(flat) :]

            stored = [flat, *carries(forward, flat, None, steps)]
            ended = call(len(self.orders), [*stored.pop(), numbers[len(steps)]])
            return ended, *transpose(back, stored, None, steps, ended[len(shared) : -1])

        self._run, self._result, orders = run, None, self.orders
        ends = len(shared) + len(flat) + 1
        self._sizes = [len(flat)] * len(orders) + [ends] + [spec_of_back.num_leaves] * len(orders)
        try:
            self.call(problem, batched, context, shared, *batches, orders, stand_ins)
            if self._result is None:
                raise RuntimeError("torch.compiler.set_stance replaces the code of the inner steps")
            ended, cotangent, total = self._result
        finally:
            self._run = self._result = None
        of_carry, *of_context = tree_unflatten([*cotangent, *total], spec_of_back)
        return dict(zip(shared, ended)), ended[-1], of_carry, tuple(of_context)

    def _compile(self, graph: GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        """The backend: what torch.compile calls in place of `graph`."""
        compiled = _split(graph, self._sizes, examples, torch._dynamo.lookup_backend(self.backend))
        count = len(_outputs(graph))

        def called(*inputs: Tensor) -> tuple[None, ...]:
            assert self._run is not None
            self._result = self._run(compiled, inputs)
            return (None,) * count

        return called


def _stand_ins(carry: Carry, number: Tensor, variants: int) -> StandIns:
    """New tensors of these shapes, whose memory is never touched."""

    def new() -> tuple[Carry, Tensor]:
        return tree_map(torch.empty_like, carry), torch.empty_like(number)

    backs = tuple((*new(), tree_map(torch.empty_like, carry)) for _ in range(variants))
    return StandIns(tuple(new() for _ in range(variants)), new(), backs)


def _split(
    graph: GraphModule, sizes: Sequence[int], examples: list[Tensor], compiler: Callable[..., Any]
) -> list[Part]:
    """The parts of a graph, compiled; `sizes` are the numbers of their outputs, with which each ends."""
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
        found.append(Part(function, itemgetter(*places) if len(places) > 1 else _only(places)))
    return found


def _only(places: list[int]) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    return lambda values: tuple(values[place] for place in places)


def _outputs(graph: GraphModule) -> list[Node]:
    return list(next(node for node in graph.graph.nodes if node.op == "output").args[0])
