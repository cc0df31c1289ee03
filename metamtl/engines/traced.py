"""A function of tensors traced once and compiled: no Python runs when it is called again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

Tensors = list[Tensor]


class Traced:
    """`function` as compiled code for tensors of the shapes, types and layouts of `examples`.

    The function is run once, with all its transforms (`vmap`, `grad`, `vjp`), and what it does to tensors
    is recorded and handed to the compiler behind `torch.compile`; so whatever Python can run is traced, and
    a call costs no more than its tensors' work. What the function reads besides its arguments is fixed
    by the trace.

    Args:
        function: of trees of tensors, to a tree of tensors; it must not look at their values.
        examples: its arguments.
    """

    def __init__(self, function: Callable[..., Any], *examples: Any) -> None:
        leaves, takes = tree_flatten(examples)
        positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        # Copies, because one tensor given twice would be traced as one argument.
        copies = [leaves[i].detach().clone(memory_format=torch.contiguous_format) for i in positions]

        def flat(*tensors: Tensor) -> tuple[Any, ...]:
            given = list(leaves)
            for i, tensor in zip(positions, tensors):
                given[i] = tensor
            found, self.gives = tree_flatten(function(*tree_unflatten(given, takes)))
            return tuple(found)

        with torch.no_grad():
            graph = make_fx(flat)(*copies)
            self.compiled = _compile(graph, copies)

    def __call__(self, *args: Any) -> Any:
        return tree_unflatten(self.flat(tensors(args)), self.gives)

    def flat(self, given: Tensors) -> Tensors:
        """The same from the arguments' tensors, contiguous and in order, to the results'."""
        return list(self.compiled(*given))


def tensors(*trees: Any) -> Tensors:
    """The tensors of these trees in order, contiguous as the compiled code takes them."""
    return [leaf.contiguous() for leaf in tree_flatten(trees)[0] if isinstance(leaf, Tensor)]


def _compile(graph: torch.fx.GraphModule, examples: Tensors) -> Callable[..., Any]:
    from torch import _inductor  # takes a second to import

    return _inductor.compile(graph, list[Any](examples))
