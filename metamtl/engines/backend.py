"""torch.compile for compiled engines: its settings, and Inductor with a workaround for one bug."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..functional import vmap_compatible_kernels


@contextmanager
def compiler_settings() -> Iterator[None]:
    """Context manager in which compiled code is built and runs; settings of torch are restored after it."""
    config = torch._dynamo.config
    saved = config.skip_nnmodule_hook_guards, config.trace_numpy
    # A graph that raises midway leaves torch's hooks on saved tensors disabled for the whole process.
    hooks_disabled = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    # Without hook guards, torch would not detect a new hook. With numpy tracing, torch would silently draw
    # numpy's random numbers from its own generator. Plain assignment, because `config.patch` takes longer
    # than a small step.
    config.skip_nnmodule_hook_guards, config.trace_numpy = False, False
    try:
        with vmap_compatible_kernels():
            yield
    finally:
        config.skip_nnmodule_hook_guards, config.trace_numpy = saved
        if hooks_disabled is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(hooks_disabled)


def inductor(graph: GraphModule, inputs: Any) -> Any:
    """Compile a graph with Inductor.

    Some of Inductor's fusions match `add` and `addmm` but ignore the factors `alpha` and `beta`. Compiled
    code computes, for example, `torch.add(x, a @ b, alpha=0.1)` as `x + a @ b`
    (https://github.com/pytorch/pytorch/issues/167313). A pass before these fusions replaces the factors
    with multiplications.
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.custom_graph_pass import get_custom_graph_passes

    passes = [_explicit_factors(), *get_custom_graph_passes(config.post_grad_custom_pre_pass)]
    return compile_fx(graph, inputs, config_patches={"post_grad_custom_pre_pass": passes})


@cache
def _explicit_factors() -> Callable[[Graph], None]:
    """The pass, as an object that Inductor can use as part of a cache key."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class ExplicitFactors(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            make_factors_explicit(graph)

        def uuid(self) -> Any:
            return get_hash_for_files((__file__,))

    return ExplicitFactors()


def make_factors_explicit(graph: Graph) -> None:
    """Replace the factors of `add`, `sub`, `addmm` and `baddbmm` with multiplications, in place."""
    aten = torch.ops.aten
    products = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}
    for node in list(graph.nodes):
        alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
        if node.op != "call_function" or (alpha == 1 and beta == 1):
            continue
        with graph.inserting_before(node):
            if node.target in (aten.add.Tensor, aten.sub.Tensor):
                x, y = node.args
                node.args = (x, _call(graph, aten.mul.Tensor, y, alpha))
            elif node.target in products:
                x, a, b = node.args
                product = _call(graph, products[node.target], a, b)
                terms: list[Any] = [_call(graph, aten.mul.Tensor, product, alpha)]
                if beta != 0:  # if beta is 0, the first term is ignored, even if it is NaN
                    terms.insert(0, _call(graph, aten.mul.Tensor, x, beta))
                else:
                    terms.append(0)
                node.target, node.args = aten.add.Tensor, tuple(terms)
            else:
                continue
        node.kwargs = {}


def _call(graph: Graph, function: Any, *args: Any) -> Node:
    node = graph.call_function(function, args)
    values = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
    node.meta["val"] = function(*values)
    return node
