"""The same adaptation with another number of steps."""

from __future__ import annotations

from .base import Adapter
from .chain import Chain
from .gradient import Gradient


def with_steps(adapter: Adapter, steps: int) -> Adapter:
    """The adapter with the same options and the same learned parameters, but `steps` gradient steps.

    A model that was trained with one step may be evaluated after each of ten:
    `adaptation_curve(model, Recipe(with_steps(recipe.adapter, 10)), ...)`.

    Raises:
        ValueError: the adapter has no gradient steps; `steps` is negative; or the step sizes differ between
            steps, so that there are none for further ones.

    >>> with_steps(Gradient(steps=1, lr=0.1), 3)
    Gradient(steps=3, lr=(0.1, 0.1, 0.1), adapts=None, differentiation=Unrolled())
    """
    if isinstance(adapter, Gradient):
        return adapter.replaced(steps=steps)
    if isinstance(adapter, Chain):
        *previous, last = adapter.adapters
        return Chain(*previous, with_steps(last, steps))  # type: ignore[arg-type]
    raise ValueError(f"steps={steps}: {adapter} has no gradient steps, so their number cannot be changed.")
