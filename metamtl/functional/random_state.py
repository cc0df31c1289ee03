"""Global state that affects operations: random generators, autocast, attention kernels."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .attention import allowed_kernels, attention_kernels


class RandomState:
    """The current state of the global random generators, autocast, and the enabled attention kernels.

    It is stored because a backward pass usually runs outside of the contexts of its forward pass.

    Args:
        cuda: the device whose generator is stored in addition to that of the CPU.
        foreign: the result of `foreign_state`; None if nothing is drawn from those generators.
    """

    def __init__(self, cuda: torch.device | None, foreign: ForeignState | None) -> None:
        self.device, self.foreign = cuda, foreign
        self.cpu_state = torch.get_rng_state()
        self.cuda_state = None if cuda is None else torch.cuda.get_rng_state(cuda)
        kinds = ("cpu",) if cuda is None else ("cpu", "cuda")
        self.autocast = [(k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds]
        self.kernels = attention_kernels()

    def current(self) -> RandomState:
        """The current state of the same generators and settings."""
        return RandomState(self.device, None if self.foreign is None else foreign_state())

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Context manager with the stored state; on exit, the generators return to their previous state."""
        previous = self.current()
        self._set()
        try:
            with ExitStack() as contexts:
                for kind, enabled, dtype in self.autocast:
                    if enabled or torch.is_autocast_enabled(kind):
                        contexts.enter_context(torch.autocast(kind, dtype, enabled))
                if self.kernels != attention_kernels():
                    contexts.enter_context(allowed_kernels(*self.kernels))
                yield
        finally:
            previous._set()

    def _set(self) -> None:
        torch.set_rng_state(self.cpu_state)
        if self.device is not None and self.cuda_state is not None:
            torch.cuda.set_rng_state(self.cuda_state, self.device)
        if self.foreign is not None:
            set_foreign_state(self.foreign)


@contextmanager
def seeded(seed: int, cuda: torch.device | None = None) -> Iterator[None]:
    """Context manager in which the global random generators start at `seed`; on exit they are as before.

    These are the generators of torch on the CPU and, if it is passed, on the device `cuda`, and those of
    Python and (if imported) NumPy.
    """
    previous = RandomState(cuda, foreign_state())
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed all GPUs
        if cuda is not None:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        if (numpy := getattr(sys.modules.get("numpy"), "random", None)) is not None:
            numpy.seed(seed % 2**32)
        yield
    finally:
        previous._set()


ForeignState = tuple[Any, ...]


def foreign_state() -> ForeignState:
    """The state of the global generators of Python and (if imported) numpy; supports `==`."""
    numpy = getattr(sys.modules.get("numpy"), "random", None)
    if numpy is None:
        return (random.getstate(), None)
    name, keys, *fields = numpy.get_state()
    return random.getstate(), (name, keys.tobytes(), *fields)


def set_foreign_state(state: ForeignState) -> None:
    """Set the generators to a result of `foreign_state`."""
    random.setstate(state[0])
    if state[1] is not None:
        numpy = sys.modules["numpy"]
        name, keys, *fields = state[1]
        numpy.random.set_state((name, numpy.frombuffer(keys, dtype=numpy.uint32), *fields))
