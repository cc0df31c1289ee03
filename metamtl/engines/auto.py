"""The engine that is fastest for the work at hand, measured on its first steps."""

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

TUNERS = 128  # kinds of work that are remembered


class Choice(NamedTuple):
    """What `Auto` has selected for one kind of work, why, and the seconds of a step that it measured."""

    engine: Engine
    reason: str
    seconds: dict[str, float]


class Auto(Engine):
    """Times `Loop`, `Vmap` (in chunks too) and, if it pays, `Compiled`; keeps the fastest.

    Every trial is a real step with the same gradient, so none is wasted. Compiling is tried if the steps
    that remain are expected to save more time than it takes: `steps` says how many there are; without it,
    once as many have been made as compiling needs to pay for itself. Before it compiles for more than two
    seconds it says so (logger `metamtl`, level WARNING), and `compile_seconds` counts what it took.

    A choice is remembered by class names and shapes, so it can be wrong about speed and never about
    numbers. No model, loss or episode is kept. `choices` lists the choices, and the logger reports them
    (level INFO).

    No more tasks run at a time than half of the free memory holds, by a bound on what a task allocates.
    Work that draws random numbers (dropout) runs under `Vmap` from the first step, so that a seed gives
    the same numbers whatever the clock says. Engines agree to rounding; for results that repeat bit for
    bit, use one engine.

    Args:
        steps: the number of calls that will be made; if None, unknown.
    """

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"steps={steps!r}: give the number of steps, at least 1, or None.")
        self.steps = steps
        self.compile_seconds = 0.0  # the time spent compiling, in total
        self._tuners: dict[Any, Autotuner] = {}

    def __repr__(self) -> str:
        return "Auto()" if self.steps is None else f"Auto(steps={self.steps})"

    def __deepcopy__(self, memo: Any) -> Auto:
        return Auto(self.steps)

    def __reduce__(self) -> Any:
        return Auto, (self.steps,)

    @property
    def choices(self) -> list[Choice]:
        """What has been selected so far."""
        return [
            Choice(tuner.choice, tuner.reason, dict(tuner.seconds))
            for tuner in self._tuners.values()
            if tuner.choice is not None
        ]

    def gradients(self, problem: TaskProblem, shared: Params, own: Params, data: Any) -> TaskGradients:
        work = Work(problem, data, evaluation=False)
        return self._run(  # type: ignore[no-any-return]
            work,
            shapes((shared, own, data)),
            lambda engine: engine.gradients(problem, shared, own, data),
        )

    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        work = Work(problem, data, evaluation=True)
        one = [leaf[0] for leaf in tree_leaves(data) if isinstance(leaf, torch.Tensor)]
        return self._run(  # type: ignore[no-any-return]
            work, (shapes(one), every), lambda engine: engine.outputs(problem, data, every=every)
        )

    def _run(self, work: Work, signature: Any, call: Callable[[Engine], Any]) -> Any:
        key = (work.evaluation, work.class_names(), work.problem.loop.num_steps, signature)
        if key not in self._tuners:
            if len(self._tuners) >= TUNERS:
                del self._tuners[next(iter(self._tuners))]
            self._tuners[key] = Autotuner(work, None if work.evaluation else self.steps)
        tuner = self._tuners[key]
        before = tuner.compile_seconds
        try:
            return tuner.run(work, call)
        finally:
            self.compile_seconds += tuner.compile_seconds - before
