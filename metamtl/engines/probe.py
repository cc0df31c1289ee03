"""Memory, random numbers and operations of one task, measured in one unbatched run."""

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

# Compilation time in seconds on two slow processors: a constant, and the time for each compiled operation.
# Convolutions take up to twice as long.
FIXED, PER_OPERATION = 10.0, 0.05
WHOLE = 900  # up to this number of operations per task, all inner steps are compiled as one function


@dataclass(frozen=True)
class Probe:
    """The memory and the operations of one task.

    Attributes:
        device: the device on which the task ran.
        draws: whether it draws random numbers from the generator of torch, Python or numpy.
        allocated: the bytes of the results of all operations, an upper bound on the peak memory.
        operations: the number of operations.
        steps: the number of inner steps.
        flat_memory: whether the adapter requires memory that does not grow with the number of steps.
    """

    device: torch.device
    draws: bool
    allocated: int
    operations: int
    steps: int
    flat_memory: bool

    @classmethod
    def of(cls, problem: TaskProblem, data: Any) -> Probe:
        """Run one task with data `data` forward and backward. Invalid input raises its own error here."""
        shared, adapter_params = leaves(trainable(problem.model)), leaves(trainable(problem.adapter))
        rng_state, foreign = torch.get_rng_state(), foreign_state()
        with torch.enable_grad(), _Counter() as counter:
            objective, _ = problem(shared, adapter_params, data)
            if objective.requires_grad:
                torch.autograd.grad(
                    objective, [*shared.values(), *adapter_params.values()], allow_unused=True
                )
        draws = not torch.equal(rng_state, torch.get_rng_state()) or foreign_state() != foreign
        torch.set_rng_state(rng_state)
        set_foreign_state(foreign)
        device = next((p.device for p in problem.model.parameters()), torch.device("cpu"))
        flat_memory = any(part.checkpoint_every is not None for part in problem.differentiations)
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
        """Whether a single inner step is compiled and called K times, instead of all K steps at once."""
        return self.steps > 2 and (self.operations > WHOLE or self.flat_memory)

    @property
    def compile_seconds(self) -> float:
        """The expected compilation time of this workload."""
        return FIXED + PER_OPERATION * self.operations / (self.steps if self.by_parts else 1)

    def tasks_that_fit(self, free: float) -> int:
        """The number of tasks that fit into half of `free` bytes; at least 1."""
        return max(1, int(0.5 * free / max(self.allocated, 1)))


class _Counter(TorchDispatchMode):
    """Counts operations and the bytes of their results."""

    allocated, operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        self.allocated += sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def free_memory(device: torch.device) -> float:
    """The number of bytes of free memory on the device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 4e9  # a guess for systems that do not report it
