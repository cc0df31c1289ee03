"""Splitting a traced graph into parts, each of which is compiled by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

Function = Callable[..., Sequence[Tensor]]


class Part(NamedTuple):
    """The compiled code of one part, and the positions of its inputs among those of the whole graph."""

    function: Function
    positions: list[int]


def compile_parts(
    graph: GraphModule, sizes: Sequence[int], examples: list[Tensor], compiler: Callable[..., Any]
) -> list[Part]:
    """Split a graph into its parts and compile them; `sizes` are the numbers of outputs of the parts.

    The outputs of a part are its last nodes.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    body = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    order, remaining = {node: index for index, node in enumerate(body)}, _outputs(graph)
    indices = [order.get(node, -1) for node in remaining]
    if indices != sorted(set(indices)) or len(remaining) != sum(sizes):
        raise RuntimeError("the outputs of the compiled graph are not the outputs of its parts, in order")
    parts: list[Part] = []
    first = 0
    for size in sizes:
        outputs, remaining = remaining[:size], remaining[size:]
        nodes = body[first : order[outputs[-1]] + 1]
        first += len(nodes)
        node_set, subgraph = set(nodes), Graph()
        part_inputs = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in node_set)
        if any(node.op not in ("placeholder", "get_attr") for node in part_inputs):
            raise RuntimeError("a part of the compiled graph reads a result of another part")
        copies: dict[Node, Node] = {}
        positions = [inputs.index(node) for node in part_inputs if node.op == "placeholder"]
        for node in sorted(part_inputs, key=lambda node: node.op != "placeholder"):
            copies[node] = subgraph.node_copy(node)
        for node in nodes:
            copies[node] = subgraph.node_copy(node, copies.__getitem__)
        subgraph.output(tuple(copies[node] for node in outputs))
        function = compiler(GraphModule(graph, subgraph), [examples[index] for index in positions])
        parts.append(Part(function, positions))
    return parts


def _outputs(graph: GraphModule) -> list[Node]:
    return list(next(node for node in graph.graph.nodes if node.op == "output").args[0])
