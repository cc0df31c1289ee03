"""Selecting the fastest engine for one kind of work by timing real steps."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .base import Engine, index_task, num_tasks
from .candidates import Work, candidates, compiled_candidate
from .compiled import Compiled
from .loop import Loop
from .probe import Probe

RECOMPILATIONS = 2  # times that compiled code may be compiled again before it is given up

log = logging.getLogger("metamtl")


class Autotuner:
    """One kind of work: the engine of each of its steps, and what they took.

    Attributes:
        choice: the selected engine, once there is one.
        reason: why it was selected.
        seconds: the least that a step (for evaluations, a task) took, by engine.
        compile_seconds: the time spent compiling.
    """

    def __init__(self, work: Work, steps: int | None) -> None:
        self.evaluation, self.total = work.evaluation, steps
        self.device = next((p.device for p in work.problem.model.parameters()), torch.device("cpu"))
        self.name = type(work.problem.model).__name__
        probe = Probe.of(work.problem, index_task(work.data, 0))
        self.expected = probe.compile_seconds  # what compiling is expected to take
        self.candidates, self.only = candidates(work, probe)
        self.reason = self.only
        self.compiled = None if self.only else compiled_candidate(work, probe)
        self.seconds: dict[str, float] = {}
        self.engines: dict[str, Engine] = {}
        self.choice: Engine | None = None
        self.batches = True  # whether tasks can run as a batch, as far as is known
        self.compile_seconds, self.steps, self.spent, self.recompilations = 0.0, 0, 0.0, 0
        self.turns = self._turns()

    def run(self, work: Work, call: Callable[[Engine], Any]) -> Any:
        """The result of one step, by the engine whose turn it is."""
        self.steps += 1
        engine = next(self.turns)
        try:
            return self._timed(engine, work, call)
        except (MemoryError, RuntimeError) as error:
            if isinstance(engine, Loop):
                raise
            result = self._timed(Loop(), work, call)  # if the input is at fault, this raises its own error
            self.seconds[repr(engine)] = float("inf")
            if not _out_of_memory(error):
                self._batches_fail(error)
            return result

    def _timed(self, engine: Engine, work: Work, call: Callable[[Engine], Any]) -> Any:
        self._synchronize()
        began = time.perf_counter()
        result = call(engine)
        self._synchronize()
        elapsed, parts = time.perf_counter() - began, num_tasks(work.data) if self.evaluation else 1
        self.spent += elapsed
        taken, name = elapsed / parts, repr(engine)
        if engine is self.compiled and name not in self.seconds:
            self.compile_seconds += max(0.0, elapsed - parts * min(self.seconds.values()))
        least = min(self.seconds.get(name, taken), taken)
        if engine is self.choice and isinstance(engine, Compiled) and taken > 1.0 + 5 * least:
            self._compiled_again(taken)
        self.seconds[name], self.engines[name] = least, engine
        return result

    def _turns(self) -> Iterator[Engine]:
        """The engine of each step, without end."""
        for engine in self.candidates:
            if not self.batches and not isinstance(engine, Loop):
                continue
            yield engine
            if len(self.candidates) > 1 and self.seconds[repr(engine)] < 3 * min(self.seconds.values()):
                yield engine  # the first time warms up
        self._select()
        while self.compiled is not None and not self._pays():
            yield self._chosen()
        if self.compiled is not None:
            yield from self._compilation()
        while True:
            yield self._chosen()

    def _compilation(self) -> Iterator[Engine]:
        assert self.compiled is not None
        if self.expected > 2:
            log.warning(
                "compiling %s, which is expected to take about %.0f s; engine=engines.Vmap() does without",
                self.name,
                self.expected,
            )
        compiled = self.compiled
        for _ in range(2 if self.evaluation else 3):
            yield compiled
        if compiled.compilations == 0:  # it ran under its fallback
            self.seconds.pop(repr(compiled), None)
            self.compiled = None
        self._select()

    def _pays(self) -> bool:
        """Whether compiling is expected to save more time than it takes.

        It saves what Python costs: much, if batching tasks saved much over running them one by one, and a
        sixth, by experience, if nearly all is arithmetic.
        """
        best = min(self.seconds.values())
        speedup = max(1.2, 0.5 * self.seconds.get("Loop()", 0.0) / best)
        if self.evaluation:
            return self.spent > self.expected
        saving = best * (1 - 1 / speedup)
        remaining = self.steps if self.total is None else self.total - self.steps
        return self.expected < remaining * saving

    def _select(self) -> None:
        name = min(self.seconds, key=lambda name: self.seconds[name])
        times = ", ".join(f"{name} {taken * 1e3:.1f} ms" for name, taken in self.seconds.items())
        self.choice = self.engines[name]
        self.reason = self.only or f"the fastest of {times}"
        log.info("%s runs under %s: %s", self.name, name, self.reason)

    def _chosen(self) -> Engine:
        assert self.choice is not None
        return self.choice

    def _compiled_again(self, taken: float) -> None:
        """Give compiled code up that has to be compiled again and again."""
        self.recompilations += 1
        self.compile_seconds += taken
        if self.recompilations > RECOMPILATIONS:
            self.seconds[repr(self.choice)] = float("inf")
            self.compiled = None
            self._select()
            warnings.warn(
                f"{self.name} was compiled again {self.recompilations} times, because a value that it, the"
                " loss or the adapter reads keeps changing; it runs without compiling now. Put the value"
                " into a tensor to keep compiled code.",
                stacklevel=6,
            )

    def _batches_fail(self, error: BaseException) -> None:
        self.compiled, self.batches = None, False
        for name in self.seconds:
            if name != "Loop()":
                self.seconds[name] = float("inf")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"tasks cannot run as a batch ({reason}); they run under Loop() instead.", stacklevel=6
        )
        if self.choice is not None:
            self._select()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
