"""Periodic embeddings of numerical inputs, for networks on tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .mlp import tower


class PeriodicEmbedding(nn.Module):
    """Append an embedding of each number to the input: `[..., inputs] -> [..., features]`.

    Gorishniy, Rubachev, Babenko 2022, https://arxiv.org/abs/2203.05556 (PLR). The number x becomes
    `relu(W [sin(2 pi c x), cos(2 pi c x)])` with learned frequencies c, initialized with standard deviation
    `sigma`. Each number has its own W and c. A ReLU net needs many units to learn that single values of a
    column, such as a certain capital gain, have an effect; trees, and this embedding, need few.

    Differs from the paper in: 1. W has no bias; 2. the input is passed on beside the embedding; 3. columns
    after the first `numbers`, such as those of a one-hot code, are passed on only.

    Args:
        inputs: number of input columns.
        numbers: number of leading columns to embed; they should be standardized.
        frequencies: number of frequencies of each column.
        width: size of the embedding of each column.
        sigma: standard deviation of the initial frequencies; the larger, the finer.

    Raises:
        ValueError: `numbers` is not between 1 and `inputs`.

    >>> embedding = PeriodicEmbedding(59, numbers=5, width=8)
    >>> embedding.features, embedding(torch.zeros(3, 59)).shape
    (99, torch.Size([3, 99]))
    """

    def __init__(
        self, inputs: int, numbers: int, *, frequencies: int = 32, width: int = 8, sigma: float = 1.0
    ) -> None:
        super().__init__()
        if not 1 <= numbers <= inputs:
            raise ValueError(f"numbers={numbers} must be from 1 to {inputs}, the number of input columns.")
        self.numbers, self.features = numbers, inputs + numbers * width
        self.frequency = nn.Parameter(sigma * torch.randn(numbers, frequencies))
        self.weight = nn.Parameter(
            torch.randn(numbers, 2 * frequencies, width) / math.sqrt(2 * frequencies)
        )

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi * x[..., : self.numbers, None] * self.frequency
        waves = torch.cat([angle.sin(), angle.cos()], -1)
        embedded = (waves.unsqueeze(-2) @ self.weight).squeeze(-2).relu()
        return torch.cat([x, embedded.flatten(-2)], -1)


def periodic_tower(*widths: int, numbers: int, sigma: float = 1.0) -> nn.Sequential:
    """A `tower` on a `PeriodicEmbedding` of its first `numbers` inputs.

    >>> periodic_tower(59, 64, 64, numbers=5)(torch.zeros(3, 59)).shape
    torch.Size([3, 64])
    """
    embedding = PeriodicEmbedding(widths[0], numbers, sigma=sigma)
    return nn.Sequential(embedding, *tower(embedding.features, *widths[1:]))
