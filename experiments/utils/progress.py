"""The progress of a run: when to stop, when to validate, and a progress bar on a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from metamtl import engines

from .state import TrainingState

POINTS = 100  # of a run, at which its scalars are logged


class Clock:
    """Seconds of wall-clock time, without those that these engines spend on compiling.

    `before` are the seconds of compiling before a training was resumed.
    """

    def __init__(self, *of: engines.Engine | None, before: float = 0.0) -> None:
        self.engines, self.before = of, before

    @property
    def compile_seconds(self) -> float:
        """Seconds of compiling so far."""
        # Engines that never compile have no such attribute.
        different = {id(engine): engine for engine in self.engines}.values()
        return self.before + sum(getattr(engine, "compile_seconds", 0.0) for engine in different)

    def __call__(self) -> float:
        return time.perf_counter() - self.compile_seconds


class Decision(NamedTuple):
    """What happens before the next step.

    Attributes:
        stop: what ends the training, or None.
        validate: whether the training is validated now.
        validated: the number of the `validate.times` parts of the run that are over.
        log: whether the next step is logged.
        logged: the number of the `POINTS` parts of the run that have begun.
    """

    stop: str | None
    validate: bool
    validated: int
    log: bool
    logged: int


class Progress:
    """A run ends at `steps`, `gradient_evaluations` or `max_minutes`, or when `patience` is exhausted.

    The bar stands on standard error, and only where that is a terminal.
    """

    def __init__(self, cfg: DictConfig, clock: Clock, state: TrainingState) -> None:
        self.clock, self.state = clock, state
        # Not read in every step: reading a config is slow compared with a step of a small model.
        self.steps, self.gradient_evaluations = cfg.steps, cfg.gradient_evaluations
        self.max_minutes, self.patience, self.times = cfg.max_minutes, cfg.patience, cfg.validate.times
        self.recipe, self.metric = cfg.recipe._target_.rpartition(".")[2], cfg.metric
        self.began = clock() - state.elapsed
        self.shown = 0.0
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=console, disable=not sys.stderr.isatty(), transient=True)
        self.task = self.bar.add_task("training", total=1.0)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far, those before it was resumed included."""
        return self.clock() - self.began

    def fractions(self) -> dict[str, float]:
        """The part of the run that is done, by each limit."""
        done = {}
        if self.steps is not None:
            done["steps"] = self.state.step / self.steps
        if self.gradient_evaluations:
            done["gradient_evaluations"] = self.state.evaluations / self.gradient_evaluations
        if self.max_minutes is not None:
            done["max_minutes"] = self.elapsed / (60 * self.max_minutes)
        return done

    def out_of_patience(self) -> str | None:
        """ "patience" if the last `patience` validations have brought no improvement, else None."""
        exhausted = self.patience and self.state.validations_since_best >= self.patience
        return "patience" if exhausted else None

    def decide(self) -> Decision:
        """Decide whether the training ends, is validated or logged now.

        A validation is due after each of `validate.times` equal parts of the run.
        """
        fractions, state = self.fractions(), self.state
        limit = max(fractions, key=lambda name: fractions[name])
        done = fractions[limit]
        parts, points = int(done * self.times), min(int(done * POINTS), POINTS - 1) + 1
        return Decision(
            limit if done >= 1 else self.out_of_patience(),
            parts > state.validated,
            max(parts, state.validated),
            points > state.logged,
            max(points, state.logged),
        )

    def show(self) -> None:
        """Update the bar, a few times per second: reading a loss waits for the device."""
        now = time.perf_counter()
        if self.bar.disable or now - self.shown < 0.3:
            return
        self.shown = now
        state = self.state
        loss = f" loss {float(state.losses[-1]):.4f}" if state.losses else ""
        quality = f" validation {self.metric} {state.best:.4f}" if state.best is not None else ""
        text = f"{self.recipe} step {state.step}{loss}{quality}"
        self.bar.update(self.task, completed=max(self.fractions().values()), description=text)
