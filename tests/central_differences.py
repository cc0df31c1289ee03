"""The one check of gradients by central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import Episode
from metamtl.adapters import Adapter


def adapted_loss(model: nn.Module, adapter: Adapter, episode: Episode) -> Tensor:
    """The mean over tasks of the squared error on the query set after adaptation, without a graph."""
    losses = []
    for task in range(episode.num_tasks):
        one = episode[task]
        fast = adapter(model, one.support, F.mse_loss)
        losses.append(F.mse_loss(functional_call(model, fast, (one.query.x,)), one.query.y).detach())
    return torch.stack(losses).mean()


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
        loss = objective()
        return loss.item() if isinstance(loss, Tensor) else loss

    try:
        for _ in range(directions):
            aim = torch.randn(gradient.shape, generator=rng, dtype=torch.float64)
            aim /= aim.norm()
            slope = (value(aim, step) - value(aim, -step)) / (2 * step)
            expected = float(aim @ gradient.double())
            assert abs(expected - slope) <= 1e-6 * max(1.0, float(gradient.norm())), (expected, slope)
    finally:
        with torch.no_grad():
            for param, first in zip(params, start):
                param.copy_(first)
