"""Scores and labels for the tests of metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from metamtl.losses import MISSING

NAN = float("nan")


T, Q, N = 7, 6, 3


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores() -> Tensor:
    return torch.randn(T, Q, N, generator=rng(), dtype=torch.float64)


def labels(missing: float = 0.0) -> Tensor:
    y = torch.randint(N, (T, Q), generator=rng(1))
    hidden = torch.rand(T, Q, generator=rng(2)) < missing
    hidden[:, 0] = False  # every task keeps a label
    return y.masked_fill(hidden, MISSING)
