"""Sources of tasks that store when the episodes of a training are drawn, and the memory of the process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from . import parts


class Recorded:
    """A source of tasks that stores when each episode is drawn, and the memory of the process then."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.seconds: list[float] = []
        self.memory: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def split(self, name: str) -> Any:
        split = self.source.split(name)
        return self._recording(split) if name == "train" else split

    def _recording(self, tasks: Any) -> Any:
        draw = tasks.sample

        def sample(num_tasks: int, generator: torch.Generator) -> Any:
            self.seconds.append(time.perf_counter())
            self.memory.append(resident())
            return draw(num_tasks, generator)

        tasks.sample = sample
        return tasks


class Sources(parts.Sources):
    """Its sources are recorded."""

    def __call__(self, cfg: DictConfig, changes: DictConfig | None = None) -> Any:
        source = super().__call__(cfg, changes)
        if not isinstance(source, Recorded):
            self.built = {key: Recorded(source) for key in self.built}
            (source,) = self.built.values()
        return source


def resident() -> float:
    """The memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
