"""The engines that `Auto` tries for one kind of workload."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from .base import Engine, num_tasks
from .compiled import Compiled
from .loop import Loop
from .probe import Probe, free_memory
from .problem import TaskProblem
from .vmap import Vmap

FEW = 8  # number of tasks in a small chunk, whose activations fit into the allocator's cache
# Maximum number of input values of a chunk in an evaluation. Larger chunks are slower when an activation
# exceeds the cache of the allocator or, for compiled code, the processor caches.
PLAIN, COMPILED = 160_000, 32_000


class Work(NamedTuple):
    """The workload of one call of `Auto`."""

    problem: TaskProblem
    data: Any
    evaluation: bool

    def key(self) -> tuple[Any, ...]:
        """All that an engine's speed depends on, except shapes. `Auto` stores its choice under it."""
        problem, loop = self.problem, self.problem.loop
        modules = (*problem.model.modules(), *problem.adapter.modules())
        classes = tuple((type(module).__qualname__, module.training) for module in modules)
        steps = (loop.num_steps, loop.reads, loop.starts_from_params)
        return self.evaluation, classes, steps, tuple(map(repr, problem.differentiations))


def candidates(work: Work, probe: Probe) -> tuple[list[Engine], str]:
    """The engines to try; if there is only one, also the reason."""
    count = num_tasks(work.data)
    if work.evaluation:
        return [Vmap(_chunk(work.data[1], PLAIN))], ""
    max_tasks = probe.tasks_that_fit(free_memory(probe.device))
    vmap = Vmap(None if max_tasks >= count else max_tasks)
    if probe.draws:
        return [vmap], "it draws random numbers"
    chunks: list[Engine] = [Vmap(FEW)] if min(max_tasks, count) > FEW else []
    return [Loop(), vmap, *chunks], ""


def compiled_candidate(work: Work, probe: Probe) -> Compiled | None:
    """The `Compiled` engine to try; None if the workload cannot be compiled."""
    if probe.draws:
        return None
    if work.evaluation:
        return (
            Compiled(_chunk(work.data[0] or work.data[1], COMPILED))
            if work.problem.loop.num_steps
            else None
        )
    fits = probe.tasks_that_fit(free_memory(probe.device)) >= num_tasks(work.data)
    return Compiled(None if fits else 1)


def _chunk(batch: Any, numbers: int) -> int:
    """The largest chunk size for which the inputs have at most `numbers` values; at least one task."""
    inputs = [leaf for leaf in tree_leaves(batch[0]) if isinstance(leaf, Tensor)]
    task_numel = sum(leaf[0].numel() for leaf in inputs)
    return max(1, min(len(inputs[0]), numbers // max(task_numel, 1)))
