"""Evaluations that come again and again: plain at first, compiled where that is paid back."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .base import Engine, count
from .compiled import Compiled
from .loop import Loop
from .task import Evaluation, TaskFunction
from .vmap import Vmap

# Input numbers of a chunk of tasks: more are slower once an activation outgrows what the allocator, or
# for compiled code the caches, keep at hand.
PLAIN = 160_000


class Compiling:
    """The seconds that compiling is taken to last: those of the last time, once there has been one."""

    seconds = 15.0


class Repeated:
    """Evaluations of one kind, `run` one by one.

    Under `Vmap` until they have taken as long together as compiling would, so that it at most doubles
    what they take; then compiled, and from then on under the faster of both.
    """

    def __init__(self, function: TaskFunction, data: Any) -> None:
        self.plain: Engine = Vmap(chunk(data[1], PLAIN))
        # Compiled code can be stale today, so the default engine does not choose it.
        self.compiled: Compiled | None = None
        self.spent = 0.0
        self.seconds: dict[Engine, float] = {}  # of one task, at best

    def run(self, evaluation: Evaluation, data: Any) -> Any:
        """What every engine's `map` gives."""
        engine = self._turn()
        before = torch.get_rng_state()
        compilations = 0 if self.compiled is None else self.compiled.compilations
        began = time.perf_counter()
        try:
            found = engine.map(evaluation, data)
        except (MemoryError, RuntimeError) as error:
            if isinstance(engine, Loop):
                raise
            found = Loop().map(evaluation, data)  # where the input is at fault, this tells it
            self.plain, self.compiled = Loop(), None
            warn_of_loop(error)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        taken = time.perf_counter() - began
        self.spent += taken
        if not torch.equal(before, torch.get_rng_state()):
            self.compiled = None  # a seed gives the same numbers, whatever the clock says
        elif self.compiled is not None and self.compiled.compilations > compilations:
            Compiling.seconds = taken - self.seconds[self.plain] * count(data)
        elif engine is self.compiled and not compilations:
            self.compiled = None  # it cannot be
        else:
            taken /= count(data)
            self.seconds[engine] = min(taken, self.seconds.get(engine, taken))
        return found

    def _turn(self) -> Engine:
        if self.compiled is None or self.spent < Compiling.seconds:
            return self.plain
        if self.compiled not in self.seconds:
            return self.compiled
        return min(self.seconds, key=lambda engine: self.seconds[engine])


def warn_of_loop(error: BaseException) -> None:
    """Say that tasks run one by one from now on, and why."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    warnings.warn(f"tasks cannot run as a batch ({reason}); they run under Loop() instead.", stacklevel=3)


def chunk(batch: Any, numbers: int) -> int:
    """How many tasks have this many input numbers in `batch`; at least one, at most all."""
    inputs = [leaf for leaf in tree_leaves(batch[0]) if isinstance(leaf, Tensor)]
    each = sum(leaf[0].numel() for leaf in inputs)
    return max(1, min(len(inputs[0]), numbers // max(each, 1)))
