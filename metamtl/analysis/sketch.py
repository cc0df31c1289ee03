"""Random projection of gradients without a stored matrix."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**20  # columns whose random numbers exist at the same time


@dataclass(frozen=True)
class Sketch:
    """Count sketch: each column is added, with a random sign, to one of `dim` random buckets.

    `(S g)_b = sum_{i: bucket(i) = b} sign(i) g_i`. Inner products are unbiased, `E <S g, S h> = <g, h>`.
    The standard error of a cosine is at most `error = 1 / sqrt(dim)`. The cost is one addition per number.
    Buckets and signs are drawn again from the seed in every call, in blocks; no matrix is stored. Rows that
    are not longer than `dim` stay exact. Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009,
    https://arxiv.org/abs/0902.2206.

    Args:
        dim: the number of buckets of each layer.
        seed: of the buckets and signs.

    Raises:
        ValueError: `dim` is less than 1.

    >>> rows = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(0))
    >>> Sketch(dim=64)(rows, "body.weight").shape, Sketch(dim=64).error
    (torch.Size([2, 64]), 0.125)
    """

    dim: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or isinstance(self.dim, bool) or self.dim < 1:
            raise ValueError(f"Sketch: dim={self.dim!r}; pass the number of buckets, an int of at least 1.")
        if not isinstance(self.seed, int):
            raise ValueError(f"Sketch: seed={self.seed!r}; pass an int.")

    @property
    def error(self) -> float:
        """The standard error of a cosine."""
        return float(self.dim**-0.5)

    def __call__(self, rows: Tensor, name: str) -> Tensor:
        """Project `rows` `[R, n]` to `[R, dim]`; `name` distinguishes the draws of different tensors."""
        if rows.shape[1] <= self.dim:
            return rows
        sketched = rows.new_zeros(len(rows), self.dim)
        for part, (buckets, signs) in zip(rows.split(BLOCK, 1), self._draws(rows.shape[1], name)):
            sketched.index_add_(1, buckets.to(rows.device), part * signs.to(rows))
        return sketched

    def _draws(self, columns: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        for first in range(0, columns, BLOCK):
            size = (min(BLOCK, columns - first),)
            buckets = torch.randint(self.dim, size, generator=generator)
            yield buckets, torch.randint(2, size, generator=generator) * 2 - 1
