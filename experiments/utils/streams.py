"""The random numbers of a training, and the episodes that are drawn with them."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from metamtl.losses import WithTeachers

TRAIN, VALIDATION, SELECT, SEEN, TEST = range(5)  # streams of random numbers


def stream(seed: int, kind: int, step: int = 0) -> torch.Generator:
    """The generator of one step: every recipe with this seed sees the same episodes in the same order."""
    # Hashed to 32 bits, because the CPU's generator drops what a seed has above them.
    mixed = np.random.SeedSequence((seed, kind, step)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


def sample(source: Any, num_tasks: int, seed: int, step: int) -> Any:
    """The episodes of a training step. A source that has a schedule receives the step."""
    inner = source.tasks if isinstance(source, WithTeachers) else source
    scheduled = "step" in inspect.signature(inner.sample).parameters
    return source.sample(num_tasks, stream(seed, TRAIN, step), **({"step": step} if scheduled else {}))
