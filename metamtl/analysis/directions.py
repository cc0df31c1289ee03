"""Vectors in parameter space: dicts of tensors by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..functional import Params


def inner(a: Params, b: Params) -> float:
    """The inner product of two dicts of tensors with the same names, in double precision."""
    return float(sum((a[name].double() * b[name].double()).sum() for name in a))


def norm(a: Params) -> float:
    """The Euclidean norm of a dict of tensors."""
    return float(inner(a, a)) ** 0.5


def moved(params: Params, direction: Params, step: float) -> Params:
    """`params + step * direction` for the names of `direction`."""
    return {name: params[name] + step * vector for name, vector in direction.items()}


def check_direction(direction: Any, params: Params, name: str = "direction") -> Params:
    """Check a direction in parameter space: tensors by name, each in the shape of its parameter.

    Raises:
        TypeError: it is not a dict of tensors.
        ValueError: it is empty, a name is unknown, a shape is wrong, or a value is not finite.
    """
    if not isinstance(direction, Mapping) or not all(isinstance(v, Tensor) for v in direction.values()):
        raise TypeError(
            f"{name} is a {type(direction).__name__}; pass a dict from parameter names to tensors."
        )
    if not direction:
        raise ValueError(f"{name} is empty; pass at least one of {', '.join(list(params)[:5])}.")
    for key, vector in direction.items():
        if key not in params:
            raise ValueError(
                f"{name} has the entry {key!r}, which is no trainable parameter; there are"
                f" {', '.join(list(params)[:5])}."
            )
        if vector.shape != params[key].shape:
            raise ValueError(
                f"{name}[{key!r}] has shape {list(vector.shape)}, but the parameter has"
                f" {list(params[key].shape)}; a direction has the shapes of the parameters."
            )
    if not all(bool(leaf.isfinite().all()) for leaf in tree_leaves(dict(direction))):
        raise ValueError(f"{name} has values that are not finite; check how it was computed.")
    return {key: vector.detach().to(params[key]) for key, vector in direction.items()}
