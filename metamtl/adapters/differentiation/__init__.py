"""Ways to differentiate through an inner loop."""

from __future__ import annotations

from typing import Any, Literal

from .base import Differentiation
from .checkpointed import Checkpointed
from .first_order import FirstOrder
from .implicit import Implicit
from .truncated import Truncated
from .unrolled import Unrolled

__all__ = [
    "Checkpointed",
    "Differentiation",
    "FirstOrder",
    "Implicit",
    "Shorthand",
    "Truncated",
    "Unrolled",
    "as_differentiation",
]

Shorthand = Literal["exact", "checkpointed", "truncated", "first_order", "implicit"]
_SHORTHANDS: dict[str, type[Differentiation]] = {
    "exact": Unrolled,
    "checkpointed": Checkpointed,
    "truncated": Truncated,
    "first_order": FirstOrder,
    "implicit": Implicit,
}


def as_differentiation(value: Any) -> Differentiation:
    """Convert a shorthand to its `Differentiation` with default options; return instances unchanged.

    Raises:
        TypeError: `value` is neither a `Differentiation` nor a string.
        ValueError: the shorthand is unknown.
    """
    if isinstance(value, Differentiation):
        return value
    if isinstance(value, str):
        if value not in _SHORTHANDS:
            raise ValueError(
                f"differentiation={value!r} is not one of {', '.join(map(repr, _SHORTHANDS))}."
            )
        return _SHORTHANDS[value]()
    remedy = (
        f"an instance, {value.__name__}()" if isinstance(value, type) else "such as adapters.Unrolled()"
    )
    raise TypeError(f"differentiation={value!r} is not a Differentiation; pass {remedy}.")
