"""How far a run is: when to stop, when to validate, and a bar that says so on a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from metamtl import engines


class Clock:
    """Seconds of wall-clock time, without those that these engines spend on compiling."""

    def __init__(self, *of: engines.Engine | None) -> None:
        self.engines = of

    @property
    def compile_seconds(self) -> float:
        """Seconds of compiling so far."""
        # Engines that never compile have no such attribute.
        different = {id(engine): engine for engine in self.engines}.values()
        return sum(getattr(engine, "compile_seconds", 0.0) for engine in different)

    def __call__(self) -> float:
        return time.perf_counter() - self.compile_seconds


class Progress:
    """A run ends at `steps`, `gradient_evaluations` or `max_minutes`, whichever is first.

    The bar stands on standard error, and only where that is a terminal.
    """

    def __init__(self, cfg: DictConfig, clock: Clock) -> None:
        self.cfg, self.clock = cfg, clock
        self.began = clock()
        self.validated = 0
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

    def fraction(self, step: int, evaluations: int) -> float:
        """Part of the run that is done, by the limit that is nearest."""
        limits = [0.0 if self.cfg.steps is None else step / self.cfg.steps]
        if self.cfg.gradient_evaluations:
            limits.append(evaluations / self.cfg.gradient_evaluations)
        if self.cfg.max_minutes is not None:
            limits.append((self.clock() - self.began) / (60 * self.cfg.max_minutes))
        return max(limits)

    def done(self, step: int, evaluations: int) -> bool:
        """Whether a limit is reached."""
        return self.fraction(step, evaluations) >= 1

    def validation_due(self, step: int, evaluations: int) -> bool:
        """Whether the run has passed the next of its `validate.times` equal parts."""
        due = int(self.fraction(step, evaluations) * self.cfg.validate.times)
        passed, self.validated = due > self.validated, max(due, self.validated)
        return passed

    def show(
        self, step: int, evaluations: int, losses: list[torch.Tensor], validation: float | None
    ) -> None:
        """Bring the bar up to date, a few times a second: reading a loss waits for the device."""
        now = time.perf_counter()
        if self.bar.disable or now - self.shown < 0.3:
            return
        self.shown = now
        loss = f" loss {float(losses[-1]):.4f}" if losses else ""
        quality = f" validation {self.cfg.metric} {validation:.4f}" if validation is not None else ""
        text = f"{self.cfg.recipe._target_.rpartition('.')[2]} step {step}{loss}{quality}"
        self.bar.update(self.task, completed=self.fraction(step, evaluations), description=text)
