"""The engine that is fastest for the work at hand, found by timing its first steps."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..functional import Params, plain_kernels, trainable
from .base import Engine, Function, Rows, at, count
from .compiled import Compiled, settings, shapes
from .kept import kept
from .loop import Loop
from .repeated import Compiling, Repeated, warn_of_loop
from .task import Evaluation, TaskFunction
from .vmap import Vmap

HORIZON = 500  # steps that the cost of compiling is weighed against, at least
FEW = 8  # tasks of a small chunk, whose activations stay where the allocator has them at hand

log = logging.getLogger("metamtl")


class Choice(NamedTuple):
    """What `Auto` has settled on for one kind of work, why, and the seconds of a step that it measured."""

    engine: Engine
    reason: str
    seconds: dict[str, float]


class Auto(Engine):
    """Times `Loop`, `Vmap` (in chunks too) and `Compiled` on the first steps, and keeps the fastest.

    Every trial is a real step with the same gradient, so none is wasted. Two steps each; then, where
    compiling is likely to be paid back within 500 steps, or within as many as there have been, the
    better of batched tasks and single ones is compiled and timed too. The choice is kept for each model,
    recipe, shape and device; `choices` lists them, and the logger `metamtl` tells them (level INFO).

    No more tasks run at a time than half of the free memory holds by a bound on what a task allocates.
    Work that draws random numbers (dropout) is `Vmap`'s from the first step, so that a seed gives the
    same numbers whatever the clock says. Engines agree to rounding; for results that repeat bit for bit,
    name one.
    """

    def __init__(self) -> None:
        self._works: WeakSet[_Work] = WeakSet()

    def __repr__(self) -> str:
        return "Auto()"

    @property
    def choices(self) -> list[Choice]:
        """What has been chosen so far."""
        return [work.choice for work in self._works if work.choice is not None]

    def rows(self, function: Function, shared: Params, own: Params, data: Any) -> Rows:
        if not isinstance(function, TaskFunction):
            return Vmap().rows(function, shared, own, data)
        key = ("rows", function.identity, shapes((shared, own, data)), settings(function.model))
        known = kept(function.model, self)
        if key not in known:
            known[key] = _work(function, shared, own, data)
            self._works.add(known[key])
        work: _Work = known[key]
        return work.step(lambda engine: engine.rows(function, shared, own, data))

    def map(self, function: Callable[[Any], Any], data: Any) -> Any:
        """As every engine's; an `Evaluation` is compiled once its like has taken as long as that takes."""
        if not isinstance(function, Evaluation):
            return Vmap().map(function, data)
        work = function.function
        params = trainable(work.model)
        key = ("map", repr(work.adapter), shapes((params, at(data, 0))), settings(work.model))
        known = kept(work.model, self)
        if key not in known:
            known[key] = Repeated(work, data)
        return known[key].run(function, data)


class _Work:
    """One kind of work: the engine of each of its steps, and what they took."""

    def __init__(self, function: TaskFunction, plain: list[Engine], why: str, compiles: bool) -> None:
        self.function, self.plain, self.why, self.compiles = function, plain, why, compiles
        self.batches = True  # as far as is known
        self.device = next(iter(function.model.parameters())).device
        self.seconds: dict[str, float] = {}
        self.engines: dict[str, Engine] = {}
        self.steps = 0
        self.choice: Choice | None = None
        self.turns = self._turns()

    def step(self, run: Callable[[Engine], Rows]) -> Rows:
        """One step, with the engine whose turn it is."""
        self.steps += 1
        engine = next(self.turns)
        if self.choice is not None and engine is self.choice.engine:
            return run(engine)
        try:
            return self._timed(engine, run)
        except (MemoryError, RuntimeError) as error:
            if isinstance(engine, Loop):
                raise
            self.seconds[repr(engine)] = float("inf")
            found = self._timed(Loop(), run)  # where the input is at fault, this tells it in its own words
            if not _out_of_memory(error):
                self.batches = self.compiles = False
                warn_of_loop(error)
            return found

    def _timed(self, engine: Engine, run: Callable[[Engine], Rows]) -> Rows:
        self._wait()
        began = time.perf_counter()
        found = run(engine)
        self._wait()
        taken = time.perf_counter() - began
        self.seconds[repr(engine)] = min(taken, self.seconds.get(repr(engine), taken))
        self.engines[repr(engine)] = engine
        return found

    def _turns(self) -> Iterator[Engine]:
        """The engine of each step, without end."""
        for engine in self.plain:
            if not self.batches and not isinstance(engine, Loop):
                continue
            yield engine
            if len(self.plain) > 1 and self.seconds[repr(engine)] < 3 * min(self.seconds.values()):
                yield engine  # the first time warms up
        self._settle()
        while self.compiles and not self._pays():
            assert self.choice is not None
            yield self.choice.engine
        if self.compiles:
            began = time.perf_counter()
            compiled = Compiled(1 if isinstance(self.choice and self.choice.engine, Loop) else None)
            for _ in range(3):
                yield compiled
            Compiling.seconds = time.perf_counter() - began
            self._settle()
        while True:
            assert self.choice is not None
            yield self.choice.engine

    def _pays(self) -> bool:
        """Whether compiling is likely to be paid back.

        It saves what Python costs: much, where batching tasks has saved much over running them one by one,
        and a sixth, by experience, where arithmetic is all there is.
        """
        best = min(self.seconds.values())
        speedup = max(1.2, 0.5 * self.seconds.get("Loop()", 0.0) / best)
        to_come = max(HORIZON - self.steps, self.steps) * best
        return Compiling.seconds < to_come * (1 - 1 / speedup)

    def _settle(self) -> None:
        name = min(self.seconds, key=lambda name: self.seconds[name])
        times = ", ".join(f"{name} {taken * 1e3:.1f} ms" for name, taken in self.seconds.items())
        why = self.why or f"the fastest of {times}"
        self.choice = Choice(self.engines[name], why, dict(self.seconds))
        log.info("%s runs under %s: %s", type(self.function.model).__name__, name, why)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _work(function: TaskFunction, shared: Params, own: Params, data: Any) -> _Work:
    """What can be tried, after a look at one task."""
    num_tasks = count(data)
    before = torch.get_rng_state()
    with torch.no_grad(), plain_kernels(), _Allocated() as allocated:
        grad(lambda shared: function(shared, own, at(data, 0)), has_aux=True)(shared)
    drawn = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    fit = max(1, int(0.5 * _free(next(iter(shared.values())).device) / max(allocated.bytes, 1)))
    whole = Vmap(None if fit >= num_tasks else fit)
    if drawn:
        return _Work(function, [whole], "it draws random numbers", compiles=False)
    chunks = [Vmap(FEW)] if min(fit, num_tasks) > FEW else []
    # Compiled code can be stale today, so the default engine does not choose it.
    return _Work(function, [Loop(), whole, *chunks], "", compiles=False)


class _Allocated(TorchDispatchMode):
    """Counts the bytes of all that operations return: no less than is ever held at once."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.bytes += sum(leaf.nbytes for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
        return found


def _free(device: torch.device) -> float:
    """Bytes of memory that are free."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 4e9  # a system that does not say


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
