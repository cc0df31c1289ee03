"""Labels and images of the tests of `FewShot`."""

from __future__ import annotations

import numpy as np
import torch

PER_CLASS = 12


LABELS = np.repeat([3, 7, 40, 41, 90, 7_000], PER_CLASS)  # no contiguous labels


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squares(dtype: type = np.uint8, channels: tuple[int, ...] = ()) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(LABELS), *channels, 4, 4)).astype(dtype)


# Every example is a number of its own, so that a picture tells which example it is.
NUMBERS = torch.arange(len(LABELS), dtype=torch.float32)
POINTS = NUMBERS[:, None].expand(-1, 2)
