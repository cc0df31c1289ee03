"""Automatic selection of the fastest engine, measured on the first steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from ..functional import Params
from .autotuner import Autotuner
from .base import Engine, TaskGradients
from .candidates import Work
from .kinds import shapes
from .problem import TaskProblem

TUNERS = 128  # maximum number of kinds of workloads whose choice is stored


class Choice(NamedTuple):
    """The engine that `Auto` selected for one kind of workload, the reason, and the seconds per step."""

    engine: Engine
    reason: str
    seconds: dict[str, float]


class Auto(Engine):
    """Measure `Loop`, `Vmap` (also in chunks) and, if worthwhile, `Compiled`; use the fastest.

    Every trial is a real step with the same gradient, so no computation is wasted. `Compiled` is tried if
    it is expected to save more time in the remaining steps than compilation takes. If `steps` is None, as
    many steps are expected to remain as were already run. If compilation is expected to take more than two
    seconds, a warning is logged first (logger `metamtl`, level WARNING). `compile_seconds` is the total
    compilation time.

    A choice is stored by class names, shapes and names of parameters, so it can affect speed but never
    results. No model, loss or episode is stored. `choices` lists the choices; they are also logged (level
    INFO).

    Tasks that run at the same time use at most half of the free memory, according to an upper bound on
    the memory of one task. Workloads that draw random numbers (dropout) always run under `Vmap`, so that
    results with a seed do not depend on timings. Engines agree up to rounding; for bitwise reproducible
    results, use a single engine.

    Args:
        steps: the total number of calls; if None, it is unknown.
    """

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"steps={steps!r}: pass the number of steps, at least 1, or None.")
        self.steps = steps
        self.compile_seconds = 0.0  # total compilation time
        self._tuners: dict[Any, Autotuner] = {}

    def __repr__(self) -> str:
        return "Auto()" if self.steps is None else f"Auto(steps={self.steps})"

    def __deepcopy__(self, memo: Any) -> Auto:
        return Auto(self.steps)

    def __reduce__(self) -> Any:
        return Auto, (self.steps,)

    @property
    def choices(self) -> list[Choice]:
        """The choices made so far."""
        return [
            Choice(tuner.choice, tuner.reason, dict(tuner.seconds))
            for tuner in self._tuners.values()
            if tuner.choice is not None
        ]

    def gradients(
        self, problem: TaskProblem, shared: Params, adapter_params: Params, data: Any
    ) -> TaskGradients:
        work = Work(problem, data, evaluation=False)
        return self._run(  # type: ignore[no-any-return]
            work,
            shapes((shared, adapter_params, data)),
            lambda engine: engine.gradients(problem, shared, adapter_params, data),
        )

    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        work = Work(problem, data, evaluation=True)
        task_leaves = [leaf[0] for leaf in tree_leaves(data) if isinstance(leaf, torch.Tensor)]
        return self._run(  # type: ignore[no-any-return]
            work, (shapes(task_leaves), every), lambda engine: engine.outputs(problem, data, every=every)
        )

    def _run(self, work: Work, signature: Any, call: Callable[[Engine], Any]) -> Any:
        key = (*work.key(), signature)
        if key not in self._tuners:
            if len(self._tuners) >= TUNERS:
                del self._tuners[next(iter(self._tuners))]
            self._tuners[key] = Autotuner(work, None if work.evaluation else self.steps)
        tuner = self._tuners[key]
        previous = tuner.compile_seconds
        try:
            return tuner.run(work, call)
        finally:
            self.compile_seconds += tuner.compile_seconds - previous
