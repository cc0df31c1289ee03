"""The progress of a run: when to stop, when to validate, and a progress bar on a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from metamtl import engines

from .state import TrainingState


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


class Progress:
    """A run ends at `steps`, `gradient_evaluations` or `max_minutes`, whichever is first.

    The bar stands on standard error, and only where that is a terminal.
    """

    def __init__(self, cfg: DictConfig, clock: Clock, state: TrainingState) -> None:
        self.cfg, self.clock, self.state = cfg, clock, state
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

    def fraction(self) -> float:
        """The part of the run that is done, by the nearest limit."""
        limits = [0.0 if self.cfg.steps is None else self.state.step / self.cfg.steps]
        if self.cfg.gradient_evaluations:
            limits.append(self.state.evaluations / self.cfg.gradient_evaluations)
        if self.cfg.max_minutes is not None:
            limits.append(self.elapsed / (60 * self.cfg.max_minutes))
        return max(limits)

    def decide(self) -> tuple[bool, bool, int]:
        """Decide whether the training ends and whether it is validated now.

        A validation is due after each of `validate.times` equal parts of the run.

        Returns:
            Whether a limit is reached; whether a validation is due; the number of parts that are over.
        """
        fraction = self.fraction()
        parts = int(fraction * self.cfg.validate.times)
        return fraction >= 1, parts > self.state.validated, max(parts, self.state.validated)

    def show(self) -> None:
        """Update the bar, a few times per second: reading a loss waits for the device."""
        now = time.perf_counter()
        if self.bar.disable or now - self.shown < 0.3:
            return
        self.shown = now
        state, cfg = self.state, self.cfg
        loss = f" loss {float(state.losses[-1]):.4f}" if state.losses else ""
        quality = f" validation {cfg.metric} {state.best:.4f}" if state.best is not None else ""
        text = f"{cfg.recipe._target_.rpartition('.')[2]} step {state.step}{loss}{quality}"
        self.bar.update(self.task, completed=self.fraction(), description=text)
