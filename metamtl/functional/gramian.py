"""The Gramian of a matrix in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 16_384  # columns that are converted at once; a copy of a whole matrix would not stay in the cache


def gramian(rows: Tensor) -> Tensor:
    """`J J^T` `[T, T]` in double precision, for J of shape `[T, n]`."""
    total = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(CHUNK, 1):
        columns = part.double()
        total.addmm_(columns, columns.T)
    return total
