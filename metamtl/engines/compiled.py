"""Tasks as compiled code, which torch's own guards keep up to date."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..functional import Params, has_adapter_buffers, trainable, vmap_compatible_kernels
from ..functional.random_state import foreign_state
from .base import Engine, TaskGradients, concatenate, index_task, num_tasks, stack
from .kinds import Kind, code_objects, precision, shapes
from .loop import leaves
from .problem import TaskProblem
from .stepwise import gradients_by_parts, outputs_by_parts
from .vmap import Vmap

KINDS = 64  # kinds of work whose compiled code is kept
log = logging.getLogger("metamtl")


class Compiled(Engine):
    """`Vmap`, compiled by `torch.compile`.

    For K <= 2 inner steps, and for more of them if a task has few operations, the whole computation is one
    compiled function. Otherwise, and with `Checkpointed`, one inner step and its vector-Jacobian product
    are compiled and called K times: compile time does not grow with K, and of every step only its
    parameters are stored, so that memory is that of `Checkpointed`.

    torch's guards notice every change of the model, its hooks and attributes, the loss and the adapter, and
    compile again. What cannot be compiled runs under `Vmap`, after a warning that gives the reason: random
    numbers, `Implicit`, modules that read the number of the inner step, code that torch.compile does not
    support, and values that change at every step and are not tensors.

    Attributes:
        compilations: the number of kinds of work (shapes, classes) compiled so far.
        compile_seconds: the time that their first calls took. Also logged by the logger `metamtl` (INFO).

    Args:
        chunk_size: tasks at a time; if None, all. With 1 the function of a single task is compiled: its
            convolutions are ordinary ones then, faster than grouped ones if images are large.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        self.fallback = Vmap(chunk_size)
        self.chunk_size, self.batched = chunk_size, chunk_size != 1
        self.compilations, self.compile_seconds = 0, 0.0
        self._kinds: dict[Any, Kind] = {}

    def __repr__(self) -> str:
        return f"Compiled(chunk_size={self.chunk_size})"

    def __deepcopy__(self, memo: Any) -> Compiled:
        return Compiled(self.chunk_size)

    def __reduce__(self) -> Any:
        return Compiled, (self.chunk_size,)

    def check(self, model: nn.Module) -> None:
        self.fallback.check(model)

    def gradients(self, problem: TaskProblem, shared: Params, own: Params, data: Any) -> TaskGradients:
        of_model = {name: param.detach() for name, param in shared.items()}
        of_adapter = {name: param.detach() for name, param in own.items()}

        def run(kind: Kind, problem: TaskProblem, chunk: Any) -> Any:
            if kind.by_parts:
                return gradients_by_parts(kind, problem, self.batched, of_model, of_adapter, chunk)
            return kind.part("whole")(problem, self.batched, of_model, of_adapter, chunk)

        result = self._run("gradients", problem, (of_model, of_adapter), data, run)
        if result is None:
            return self.fallback.gradients(problem, shared, own, data)
        (rows, adapter_rows, losses), evaluations = result
        return TaskGradients(losses, rows, adapter_rows, {}, evaluations * num_tasks(data))

    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        of_model = {name: param.detach() for name, param in trainable(problem.model).items()}
        of_adapter = {name: param.detach() for name, param in trainable(problem.adapter).items()}

        def run(kind: Kind, problem: TaskProblem, chunk: Any) -> Any:
            return outputs_by_parts(kind, problem, self.batched, of_model, of_adapter, chunk, every), 0

        result = self._run("outputs", problem, (of_model, of_adapter), data, run)
        return self.fallback.outputs(problem, data, every=every) if result is None else result[0]

    def _run(self, what: str, problem: TaskProblem, params: Any, data: Any, run: Any) -> Any:
        """The results of all chunks, and the evaluations of one task; None if `Vmap` has to run it."""
        results, evaluations = [], 0
        for skip, chunk in self._chunks(data):
            steps = problem.loop.num_steps
            key = (what, code_objects(problem), shapes((params, chunk)), steps, precision())
            kind = self._kinds.get(key)
            if kind is None:
                self._forget_the_oldest()
                kind = self._kinds[key] = Kind(_unsupported(problem))
            if kind.reason is None and not kind.examined:
                kind.examine(problem, index_task(chunk, 0) if self.batched else chunk)
            if kind.reason is None and (unused := _decays_unused(problem, params, chunk, self.batched)):
                kind.reason = f"the rule decays parameters, and the support loss does not use {unused}"
            result = None if kind.reason is not None else self._attempt(kind, problem, chunk, run)
            if result is None:
                self._report(kind)
                return None
            tensors, evaluations = result
            results.append(index_task(tensors, slice(skip, None)) if skip else tensors)
        return (concatenate(results) if self.batched else stack(results)), evaluations

    def _attempt(self, kind: Kind, problem: TaskProblem, chunk: Any, run: Any) -> Any:
        """The result of compiled code; None, with the reason in `kind`, if there is none to be had."""
        problem = kind.with_leftovers(problem)
        before = torch.get_rng_state(), foreign_state() if kind.calls == 0 else None
        began = time.perf_counter()
        try:
            with torch.no_grad(), _settings():
                result = run(kind, problem, chunk)
        except Exception as error:  # whatever cannot be compiled, Vmap can run, or reports in its words
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            kind.reason = f"{type(error).__name__}: {' '.join(lines[:2])}"
            result = None
        if not torch.equal(before[0], torch.get_rng_state()):
            kind.reason, result = "it draws random numbers", None
            torch.set_rng_state(before[0])
        if result is not None:
            kind.calls += 1
            if kind.calls == 1:
                self.compilations += 1
                self.compile_seconds += (seconds := time.perf_counter() - began)
                log.info("%r compiled %s in %.1f s", self, type(problem.model).__name__, seconds)
        return result

    def _report(self, kind: Kind) -> None:
        if not kind.reported:
            kind.reported = True
            warnings.warn(
                f"this work is not compiled ({kind.reason}) and runs under {self.fallback!r}.", stacklevel=5
            )

    def _chunks(self, data: Any) -> Iterator[tuple[int, Any]]:
        """The chunks of `data`, and how many tasks of each are in the chunk before, too.

        The last chunk begins early, to be of the shape that is compiled.
        """
        count = num_tasks(data)
        size = min(self.chunk_size or count, count)
        if self.batched and size == count:
            yield 0, data
            return
        for first in range(0, count, size):
            begin = min(first, count - size)
            yield first - begin, index_task(data, slice(begin, begin + size) if self.batched else first)

    def _forget_the_oldest(self) -> None:
        if len(self._kinds) >= KINDS:
            del self._kinds[next(iter(self._kinds))]


@contextmanager
def _settings() -> Iterator[None]:
    config = torch._dynamo.config
    before = config.skip_nnmodule_hook_guards, config.trace_numpy
    # Without hook guards torch would not notice a hook; with numpy traced, numpy's random numbers would
    # become torch's without a word. Assigned, because `config.patch` takes longer than a small step.
    config.skip_nnmodule_hook_guards, config.trace_numpy = False, False
    try:
        with vmap_compatible_kernels():
            yield
    finally:
        config.skip_nnmodule_hook_guards, config.trace_numpy = before


def _unsupported(problem: TaskProblem) -> str | None:
    """Why this work cannot be compiled, if that is known beforehand."""
    if has_adapter_buffers(problem.model):
        return "a module of the model reads the number of the inner step or the support set's statistics"
    for way in problem.differentiations:
        if not way.runs_compiled:
            return f"differentiation={way} has no compiled form"
    return None


def _decays_unused(problem: TaskProblem, params: Any, chunk: Any, batched: bool) -> list[str]:
    """Parameters that compiled code would decay though the support loss does not use them."""
    if not any(getattr(part, "decays", False) for part in problem.adapter.modules()):
        return []
    support, _, task = index_task(chunk, 0) if batched else chunk
    return problem.loop.unused({**problem.frozen, **leaves(params[0])}, support, task)
