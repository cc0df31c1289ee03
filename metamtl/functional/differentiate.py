"""Gradients with plain autograd or, inside a transform of torch.func, with torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level  # type: ignore[attr-defined]
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .select import Params


def in_transform() -> bool:
    """Whether a transform of torch.func (`vmap`, `grad`) is active, or torch.compile is tracing one."""
    return torch.compiler.is_compiling() or maybe_current_level() is not None


def gradient(
    function: Callable[[Params], Tensor], params: Params, *, differentiable: bool = True
) -> Params:
    """`d function(params) / d params` for the parameters that the function uses.

    Outside of the transforms of torch.func, this calls `torch.autograd.grad`, which supports every module
    that `backward()` supports. Inside a transform, it calls torch.func. Both return the same values.

    Args:
        function: a function whose result is a scalar.
        params: tensors by name. If a tensor has been computed from another one, pass views, because the
            results are partial derivatives.
        differentiable: whether the result can be differentiated again. Under `torch.no_grad()` it cannot.

    Returns:
        The gradients by name. A parameter that the function does not use has no entry, as `.grad` of an
        unused parameter stays None.

    >>> x = torch.tensor(3.0)
    >>> gradient(lambda p: p["a"] ** 2, {"a": x, "b": x}, differentiable=False)
    {'a': tensor(6.)}
    """
    if torch.compiler.is_compiling():
        return torch.func.grad(function)(params)
    names = list(params)
    if in_transform():
        return _transform_gradient(function, params)
    create_graph = differentiable and torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [
            p if create_graph and p.requires_grad else p.detach().requires_grad_() for p in params.values()
        ]
        value = function(dict(zip(names, leaves)))
        if not value.requires_grad:
            return {}
        grads = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return {name: g for name, g in zip(names, grads) if g is not None}


def _transform_gradient(function: Callable[[Params], Tensor], params: Params) -> Params:
    names, used_names = list(params), list[str]()

    def value(*leaves: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        result = function(dict(zip(names, leaves)))
        if not result.requires_grad:
            return result, ()
        grads = torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True)
        used_names.extend(name for name, g in zip(names, grads) if g is not None)
        return result, tuple(g for g in grads if g is not None)

    # torch.func.grad would return zeros for unused parameters. The function that torch.func.vjp returns is
    # never called.
    _, _, grads = torch.func.vjp(value, *params.values(), has_aux=True)  # type: ignore[misc]
    return dict(zip(used_names, grads))


def vjp(function: Callable[..., Any], args: tuple[Any, ...], cotangent: Any) -> Any:
    """The vector-Jacobian product of `function(*args)`, a tree like `args`; zero for unused arguments."""
    return vjp_function(function, args)(cotangent)


def vjp_function(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[Any], Any]:
    """A function, callable repeatedly, that maps a cotangent of `function(*args)` to those of `args`."""
    if in_transform():
        return torch.func.vjp(function, *args)[1]  # type: ignore[no-any-return]
    leaves, spec = tree_flatten(args)
    with torch.enable_grad():
        inputs = [leaf.detach().requires_grad_() for leaf in leaves]
        outputs = tree_flatten(function(*tree_unflatten(inputs, spec)))[0]
    indices = [i for i, output in enumerate(outputs) if output.requires_grad]

    def product(cotangent: Any) -> Any:
        if not indices:
            return tree_unflatten([torch.zeros_like(leaf) for leaf in inputs], spec)
        cotangents = tree_flatten(cotangent)[0]
        grads = torch.autograd.grad(
            [outputs[i] for i in indices],
            inputs,
            [cotangents[i] for i in indices],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return tree_unflatten(list(grads), spec)

    return product


def detached(tree: Any) -> Any:
    """The same tree with its tensors detached."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
