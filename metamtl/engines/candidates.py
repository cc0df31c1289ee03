"""The engines that `Auto` tries for one kind of work."""

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

FEW = 8  # tasks of a small chunk, whose activations stay where the allocator has them at hand
# Input numbers of a chunk of an evaluation: more are slower once an activation outgrows what the
# allocator, or for compiled code the caches, keep at hand.
PLAIN, COMPILED = 160_000, 32_000


class Work(NamedTuple):
    """What one call of `Auto` computes."""

    problem: TaskProblem
    data: Any
    evaluation: bool

    def class_names(self) -> tuple[Any, ...]:
        """The classes of the modules, which tell kinds of work apart, and whether they are training."""
        modules = (*self.problem.model.modules(), *self.problem.adapter.modules())
        return tuple((type(module).__qualname__, module.training) for module in modules)


def candidates(work: Work, probe: Probe) -> tuple[list[Engine], str]:
    """The engines to try, and why there is only one."""
    count = num_tasks(work.data)
    if work.evaluation:
        return [Vmap(_chunk(work.data[1], PLAIN))], ""
    fit = probe.tasks_that_fit(free_memory(probe.device))
    whole = Vmap(None if fit >= count else fit)
    if probe.draws:
        return [whole], "it draws random numbers"
    chunks: list[Engine] = [Vmap(FEW)] if min(fit, count) > FEW else []
    return [Loop(), whole, *chunks], ""


def compiled_candidate(work: Work, probe: Probe) -> Compiled | None:
    """The `Compiled` engine to try; None for work that cannot be compiled."""
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
    """The chunk size at which a chunk's inputs are at most `numbers` values: from one task to all."""
    inputs = [leaf for leaf in tree_leaves(batch[0]) if isinstance(leaf, Tensor)]
    each = sum(leaf[0].numel() for leaf in inputs)
    return max(1, min(len(inputs[0]), numbers // max(each, 1)))
