"""Tasks as code compiled by torch.compile, whose guards detect changes."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..functional import Params, has_adapter_buffers, trainable
from ..objectives.base import reads
from .backend import compiler_settings
from .base import Engine, TaskGradients, concatenate, index_task, num_tasks, stack
from .kinds import Kind, code_objects, precision, shapes
from .loop import leaves
from .problem import TaskProblem
from .stepwise import gradients_by_parts, outputs_by_parts
from .vmap import Vmap

KINDS = 64  # maximum number of kinds of workloads whose compiled code is stored
log = logging.getLogger("metamtl")


class Compiled(Engine):
    """`Vmap`, compiled with `torch.compile`.

    K <= 2 inner steps, or more if a task has few operations: the whole computation is compiled as one
    function. Otherwise, and with `Checkpointed`: one inner step and its vector-Jacobian product are
    compiled and called K times. Then compilation time does not grow with K, and only the parameters of
    each step are stored, so memory is that of `Checkpointed`.

    The guards of torch.compile detect every change of the model, its hooks and attributes, the loss and the
    adapter, and trigger a recompilation. A workload that cannot be compiled runs under `Vmap`, after a
    warning with the reason: random numbers, `Implicit`, modules that read the index of the inner step, code
    that torch.compile does not support, and values that change in every step and are not tensors.

    Attributes:
        compilations: number of kinds of workloads (shapes, classes) compiled so far.
        compile_seconds: the total time of their first calls; also logged (logger `metamtl`, level INFO).

    Args:
        chunk_size: number of tasks that run at the same time; if None, all. With 1, the function of a
            single task is compiled: its convolutions are not grouped, which is faster for large images.
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

    def gradients(
        self, problem: TaskProblem, shared: Params, adapter_params: Params, data: Any
    ) -> TaskGradients:
        model_params = {name: param.detach() for name, param in shared.items()}
        adapter_params = {name: param.detach() for name, param in adapter_params.items()}

        def run(kind: Kind, problem: TaskProblem, chunk: Any) -> Any:
            if kind.by_parts:
                return gradients_by_parts(kind, problem, self.batched, model_params, adapter_params, chunk)
            return kind.part("whole")(problem, self.batched, model_params, adapter_params, chunk)

        result = self._run("gradients", problem, (model_params, adapter_params), data, run)
        if result is None:
            return self.fallback.gradients(problem, shared, adapter_params, data)
        rows, adapter_rows, losses = result
        return TaskGradients(losses, rows, adapter_rows, {})

    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        model_params = {name: param.detach() for name, param in trainable(problem.model).items()}
        adapter_params = {name: param.detach() for name, param in trainable(problem.adapter).items()}

        def run(kind: Kind, problem: TaskProblem, chunk: Any) -> Any:
            return outputs_by_parts(kind, problem, self.batched, model_params, adapter_params, chunk, every)

        result = self._run("outputs", problem, (model_params, adapter_params), data, run)
        return self.fallback.outputs(problem, data, every=every) if result is None else result

    def _run(self, what: str, problem: TaskProblem, params: Any, data: Any, run: Any) -> Any:
        """The results of all chunks; None if `Vmap` must run them."""
        results = []
        for skip, chunk in self._chunks(data):
            steps = problem.loop.num_steps
            key = (what, code_objects(problem), shapes((params, chunk)), steps, precision())
            kind = self._kinds.get(key)
            if kind is None:
                self._evict_oldest()
                kind = self._kinds[key] = Kind(_unsupported(problem))
            if kind.reason is None and not kind.examined:
                problem = kind.examine(problem, index_task(chunk, 0) if self.batched else chunk)
            if kind.reason is None and (unused := _decays_unused(problem, params, chunk, self.batched)):
                kind.reason = f"the rule decays parameters, but the support loss does not use {unused}"
            result = None if kind.reason is not None else self._attempt(kind, problem, chunk, run)
            if result is None:
                self._report(kind)
                return None
            results.append(index_task(result, slice(skip, None)) if skip else result)
        return concatenate(results) if self.batched else stack(results)

    def _attempt(self, kind: Kind, problem: TaskProblem, chunk: Any, run: Any) -> Any:
        """The result of compiled code; if it cannot run, None, with the reason in `kind`."""
        problem = kind.with_leftovers(problem)
        rng_state = torch.get_rng_state()
        start_time = time.perf_counter()
        try:
            with torch.no_grad(), compiler_settings():
                result = run(kind, problem, chunk)
        except Exception as error:  # Vmap runs whatever cannot be compiled, or raises its own error
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            kind.reason = f"{type(error).__name__}: {' '.join(lines[:2])}"
            result = None
        if not torch.equal(rng_state, torch.get_rng_state()):
            kind.reason, result = "it draws random numbers", None
            torch.set_rng_state(rng_state)
        if result is not None:
            kind.calls += 1
            if kind.calls == 1:
                self.compilations += 1
                self.compile_seconds += (seconds := time.perf_counter() - start_time)
                log.info("%r compiled %s in %.1f s", self, type(problem.model).__name__, seconds)
        return result

    def _report(self, kind: Kind) -> None:
        if not kind.reported:
            kind.reported = True
            warnings.warn(
                f"this workload is not compiled ({kind.reason}) and runs under {self.fallback!r}.",
                stacklevel=5,
            )

    def _chunks(self, data: Any) -> Iterator[tuple[int, Any]]:
        """The chunks of `data`, each with the number of its tasks that the previous chunk contains too.

        All chunks have the compiled shape, so the last chunk may overlap the previous one.
        """
        count = num_tasks(data)
        size = min(self.chunk_size or count, count)
        if self.batched and size == count:
            yield 0, data
            return
        for first in range(0, count, size):
            start = min(first, count - size)
            yield first - start, index_task(data, slice(start, start + size) if self.batched else first)

    def _evict_oldest(self) -> None:
        if len(self._kinds) >= KINDS:
            del self._kinds[next(iter(self._kinds))]


def _unsupported(problem: TaskProblem) -> str | None:
    """The reason why this workload cannot be compiled, if it is known in advance."""
    if has_adapter_buffers(problem.model):
        return (
            "a module of the model reads the index of the inner step or the statistics of the support set"
        )
    if reads(problem.objective) == "adapter":
        return "the objective runs the adapter several times"
    for differentiation in problem.differentiations:
        if not differentiation.runs_compiled:
            return f"differentiation={differentiation} cannot be compiled"
    return None


def _decays_unused(problem: TaskProblem, params: Any, chunk: Any, batched: bool) -> list[str]:
    """Parameters that compiled code would decay although the support loss does not use them."""
    if not any(getattr(part, "decays", False) for part in problem.adapter.modules()):
        return []
    support, _, task = index_task(chunk, 0) if batched else chunk
    return problem.loop.unused({**problem.frozen, **leaves(params[0])}, support, task)
