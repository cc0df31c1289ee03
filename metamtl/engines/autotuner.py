"""Selection of the fastest engine for one kind of workload, based on the timing of real steps."""

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

RECOMPILATIONS = 2  # allowed recompilations; after more, the workload is no longer compiled

log = logging.getLogger("metamtl")


class Autotuner:
    """Selects the engine for each step of one kind of workload, and measures the steps.

    Attributes:
        choice: the selected engine; None before the selection.
        reason: why it was selected.
        seconds: the shortest time of a step (for evaluations: of a task), by engine.
        compile_seconds: the total compilation time.
    """

    def __init__(self, work: Work, steps: int | None) -> None:
        self.evaluation, self.total = work.evaluation, steps
        self.device = next((p.device for p in work.problem.model.parameters()), torch.device("cpu"))
        self.name = type(work.problem.model).__name__
        probe = Probe.of(work.problem, index_task(work.data, 0))
        self.expected = probe.compile_seconds  # the expected compilation time
        self.candidates, self.only = candidates(work, probe)
        self.reason = self.only
        self.compiled = None if self.only else compiled_candidate(work, probe)
        self.seconds: dict[str, float] = {}
        self.engines: dict[str, Engine] = {}
        self.choice: Engine | None = None
        self.batches = True  # False once tasks have failed to run as a batch
        self.compile_seconds, self.steps, self.spent, self.recompilations = 0.0, 0, 0.0, 0
        self.turns = self._turns()

    def run(self, work: Work, call: Callable[[Engine], Any]) -> Any:
        """The result of one step, computed by the next engine."""
        self.steps += 1
        engine = next(self.turns)
        try:
            return self._timed(engine, work, call)
        except (MemoryError, RuntimeError) as error:
            if isinstance(engine, Loop):
                raise
            result = self._timed(Loop(), work, call)  # if the input is invalid, this raises its own error
            self.seconds[repr(engine)] = float("inf")
            if not _out_of_memory(error):
                self._batches_fail(error)
            return result

    def _timed(self, engine: Engine, work: Work, call: Callable[[Engine], Any]) -> Any:
        self._synchronize()
        start_time = time.perf_counter()
        result = call(engine)
        self._synchronize()
        elapsed, parts = time.perf_counter() - start_time, num_tasks(work.data) if self.evaluation else 1
        self.spent += elapsed
        seconds, name = elapsed / parts, repr(engine)
        if engine is self.compiled and name not in self.seconds:
            self.compile_seconds += max(0.0, elapsed - parts * min(self.seconds.values()))
        minimum = min(self.seconds.get(name, seconds), seconds)
        if engine is self.choice and isinstance(engine, Compiled) and seconds > 1.0 + 5 * minimum:
            self._count_recompilation(seconds)
        self.seconds[name], self.engines[name] = minimum, engine
        return result

    def _turns(self) -> Iterator[Engine]:
        """An infinite iterator over the engines of the steps."""
        for engine in self.candidates:
            if not self.batches and not isinstance(engine, Loop):
                continue
            yield engine
            if len(self.candidates) > 1 and self.seconds[repr(engine)] < 3 * min(self.seconds.values()):
                yield engine  # again, because the first run was the warm-up
        self._select()
        while self.compiled is not None and not self._amortizes():
            yield self._selected()
        if self.compiled is not None:
            yield from self._compilation()
        while True:
            yield self._selected()

    def _compilation(self) -> Iterator[Engine]:
        assert self.compiled is not None
        if self.expected > 2:
            log.warning(
                "compiling %s, which is expected to take about %.0f s; use engine=engines.Vmap() to avoid"
                " the compilation",
                self.name,
                self.expected,
            )
        compiled = self.compiled
        for _ in range(2 if self.evaluation else 3):
            yield compiled
        if compiled.compilations == 0:  # all runs used the fallback
            self.seconds.pop(repr(compiled), None)
            self.compiled = None
        self._select()

    def _amortizes(self) -> bool:
        """Whether compilation is expected to save more time than it takes.

        Compilation removes Python overhead. The overhead is large if batches of tasks were much faster than
        single tasks. If nearly all time is arithmetic, compilation saves about one sixth (empirically).
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
        times = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in self.seconds.items())
        self.choice = self.engines[name]
        self.reason = self.only or f"the fastest of {times}"
        log.info("%s runs under %s: %s", self.name, name, self.reason)

    def _selected(self) -> Engine:
        assert self.choice is not None
        return self.choice

    def _count_recompilation(self, seconds: float) -> None:
        """Count a recompilation. If there have been too many, stop using compiled code."""
        self.recompilations += 1
        self.compile_seconds += seconds
        if self.recompilations > RECOMPILATIONS:
            self.seconds[repr(self.choice)] = float("inf")
            self.compiled = None
            self._select()
            warnings.warn(
                f"{self.name} was compiled again {self.recompilations} times, because a value that the"
                " model, the loss or the adapter reads keeps changing; it now runs uncompiled. Put the"
                " value into a tensor to use compiled code.",
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
