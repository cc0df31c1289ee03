"""Random numbers that are a pure function of integers, for code that must repeat under every engine.

A generator of torch has a state, which vmap, recomputation and torch.compile would advance differently.
These numbers depend only on the key and on the position in the tensor (SplitMix64, Steele, Lea, Flood 2014,
https://doi.org/10.1145/2660193.2660195).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Key = Sequence[int | Tensor]  # integers, such as (seed, step, index of a parameter)
_GAMMA, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def uniform(key: Key, shape: Sequence[int], *, device: torch.device | None = None) -> Tensor:
    """Numbers in [0, 1) in float64 with `shape`, a pure function of `key`.

    >>> bool((uniform((0, 1), (3,)) == uniform((0, 1), (3,))).all())
    True
    """
    state = torch.zeros((), dtype=torch.int64, device=device)
    for part in key:
        state = _mix(state + part + _GAMMA)
    counter = torch.arange(math.prod(shape), dtype=torch.int64, device=device)
    bits = _mix(state + (counter + 1) * _GAMMA)
    return (_shift(bits, 11).to(torch.float64) * 2.0**-53).view(tuple(shape))


def normal(key: Key, shape: Sequence[int], *, device: torch.device | None = None) -> Tensor:
    """Standard normal numbers in float64 (Box-Muller), a pure function of `key`."""
    radius, angle = uniform(key, (2, *shape), device=device).unbind(0)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """The logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
