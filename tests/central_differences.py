"""The one check of gradients by central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def check_gradient(
    objective: Callable[[], Tensor | float],
    params: Sequence[Tensor],
    gradient: Tensor,
    *,
    directions: int = 2,
    step: float = 1e-5,
) -> None:
    """Compare the flat `gradient` with slopes of `objective` along random directions of unit length.

    `objective` reads `params`, which are moved and then set back to the same bits.
    """
    rng, sizes = torch.Generator().manual_seed(1), [param.numel() for param in params]
    start = [param.detach().clone() for param in params]

    def value(aim: Tensor, size: float) -> float:
        with torch.no_grad():
            for param, first, piece in zip(params, start, aim.split(sizes)):
                param.copy_(first + size * piece.view_as(first))
        found = objective()
        return found.item() if isinstance(found, Tensor) else found

    try:
        for _ in range(directions):
            aim = torch.randn(gradient.shape, generator=rng, dtype=torch.float64)
            aim /= aim.norm()
            slope = (value(aim, step) - value(aim, -step)) / (2 * step)
            found = float(aim @ gradient.double())
            assert abs(found - slope) <= 1e-6 * max(1.0, float(gradient.norm())), (found, slope)
    finally:
        with torch.no_grad():
            for param, first in zip(params, start):
                param.copy_(first)
