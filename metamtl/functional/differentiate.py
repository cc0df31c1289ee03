"""Gradients by plain autograd or, inside a transform of torch.func, by torch.func."""

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
    """`d function(params) / d params` for those of the parameters that the function uses.

    Outside of torch.func's transforms this is `torch.autograd.grad`, which takes every module that
    `backward()` takes; inside of them it is a transform. The two give the same numbers.

    Args:
        function: to a scalar.
        params: tensors by name. Where one has been computed from another, pass views: these are partial
            derivatives.
        differentiable: whether the result can be differentiated again. It cannot where no gradient is
            recorded (`torch.no_grad()`).

    Returns:
        The gradients by name. A name is missing if the function does not depend on it, as `.grad` of an
        unused parameter stays None.

    >>> x = torch.tensor(3.0)
    >>> gradient(lambda p: p["a"] ** 2, {"a": x, "b": x}, differentiable=False)
    {'a': tensor(6.)}
    """
    if torch.compiler.is_compiling():
        return torch.func.grad(function)(params)
    names = list(params)
    if in_transform():
        return _by_transform(function, params)
    record = differentiable and torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [p if record and p.requires_grad else p.detach().requires_grad_() for p in params.values()]
        value = function(dict(zip(names, leaves)))
        if not value.requires_grad:
            return {}
        grads = torch.autograd.grad(value, leaves, create_graph=record, allow_unused=True)
    return {name: g for name, g in zip(names, grads) if g is not None}


def _by_transform(function: Callable[[Params], Tensor], params: Params) -> Params:
    names, used = list(params), list[str]()

    def value(*leaves: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        result = function(dict(zip(names, leaves)))
        if not result.requires_grad:
            return result, ()
        grads = torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True)
        used.extend(name for name, g in zip(names, grads) if g is not None)
        return result, tuple(g for g in grads if g is not None)

    # torch.func.grad would give zeros for what is not used. Its own backward pass is never called.
    _, _, grads = torch.func.vjp(value, *params.values(), has_aux=True)  # type: ignore[misc]
    return dict(zip(used, grads))


def vjp(function: Callable[..., Any], args: tuple[Any, ...], cotangent: Any) -> Any:
    """The vector-Jacobian product of `function(*args)`, a tree like `args`; zero for what is not used."""
    return vjp_function(function, args)(cotangent)


def vjp_function(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[Any], Any]:
    """From a cotangent of `function(*args)` to those of `args`; may be called several times."""
    if in_transform():
        return torch.func.vjp(function, *args)[1]  # type: ignore[no-any-return]
    leaves, spec = tree_flatten(args)
    with torch.enable_grad():
        inputs = [leaf.detach().requires_grad_() for leaf in leaves]
        outputs = tree_flatten(function(*tree_unflatten(inputs, spec)))[0]
    used = [i for i, output in enumerate(outputs) if output.requires_grad]

    def product(cotangent: Any) -> Any:
        if not used:
            return tree_unflatten([torch.zeros_like(leaf) for leaf in inputs], spec)
        cotangents = tree_flatten(cotangent)[0]
        grads = torch.autograd.grad(
            [outputs[i] for i in used],
            inputs,
            [cotangents[i] for i in used],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return tree_unflatten(list(grads), spec)

    return product


def detached(tree: Any) -> Any:
    """The same tree with its tensors detached."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
