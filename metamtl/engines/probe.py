"""What one task allocates, draws and computes, seen by running it once without a batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..functional import trainable
from ..functional.random_state import foreign_state, set_foreign_state
from .loop import leaves
from .problem import TaskProblem

# Seconds that compiling takes on two slow processors: fixed, and for each operation of what is compiled.
# Convolutions take up to twice as long.
FIXED, PER_OPERATION = 10.0, 0.05
WHOLE = 900  # operations of one task up to which all inner steps are compiled as one function


@dataclass(frozen=True)
class Probe:
    """One task's bytes and operations.

    Attributes:
        device: where it ran.
        draws: whether it draws random numbers, from torch's, Python's or numpy's generator.
        allocated: the bytes of all results of operations: no less than is ever held at once.
        operations: their number.
        steps: the number of inner steps.
        flat_memory: whether the adapter asks for memory that does not grow with the steps.
    """

    device: torch.device
    draws: bool
    allocated: int
    operations: int
    steps: int
    flat_memory: bool

    @classmethod
    def of(cls, problem: TaskProblem, data: Any) -> Probe:
        """Run a task forward and backward; `data` is its data. Wrong input raises its own error here."""
        shared, own = leaves(trainable(problem.model)), leaves(trainable(problem.adapter))
        before, foreign = torch.get_rng_state(), foreign_state()
        with torch.enable_grad(), _Counter() as counter:
            objective, _, _ = problem(shared, own, data)
            if objective.requires_grad:
                torch.autograd.grad(objective, [*shared.values(), *own.values()], allow_unused=True)
        draws = not torch.equal(before, torch.get_rng_state()) or foreign_state() != foreign
        torch.set_rng_state(before)
        set_foreign_state(foreign)
        device = next((p.device for p in problem.model.parameters()), torch.device("cpu"))
        flat_memory = any(way.checkpoint_every is not None for way in problem.differentiations)
        return cls(
            device,
            draws,
            counter.allocated,
            counter.operations,
            problem.loop.num_steps,
            flat_memory,
        )

    @property
    def by_parts(self) -> bool:
        """True if a single inner step is compiled and called K times; False if all K are one function."""
        return self.steps > 2 and (self.operations > WHOLE or self.flat_memory)

    @property
    def compile_seconds(self) -> float:
        """What compiling this work is expected to take."""
        return FIXED + PER_OPERATION * self.operations / (self.steps if self.by_parts else 1)

    def tasks_that_fit(self, free: float) -> int:
        """How many tasks half of `free` bytes hold."""
        return max(1, int(0.5 * free / max(self.allocated, 1)))


class _Counter(TorchDispatchMode):
    """Counts operations, and the bytes of their results."""

    allocated, operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        self.allocated += sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def free_memory(device: torch.device) -> float:
    """Bytes of memory that are free."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 4e9  # a system that does not say
