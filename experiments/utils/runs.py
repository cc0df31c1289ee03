"""The trainings of a table: cached runs, grids of options, and the selection score."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .. import train
from ..tables.report import write_json
from .parts import Sources

Run = dict[str, Any]


def run_cached(cfg: DictConfig, folder: Path, sources: Sources | None = None) -> Run:
    """`train.run`; if a loss is not finite, the result is `{"config": ..., "diverged": ...}`."""
    try:
        return train.run(cfg, folder, sources)
    except FloatingPointError as error:
        diverged = {"config": OmegaConf.to_container(cfg, resolve=False), "diverged": str(error)}
        write_json(folder / "result.json", diverged)
        return diverged


def grid_points(tune: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Convert `{"optimizer.lr": [1e-3, 3e-3]}` to `[{"optimizer.lr": 1e-3}, {"optimizer.lr": 3e-3}]`."""
    tune = tune or {}
    return [dict(zip(tune, values)) for values in product(*tune.values())]


def label(values: Mapping[str, Any]) -> str:
    """Folder name of a grid point."""
    return ",".join(f"{name}={value}" for name, value in values.items()) or "as given"


def quality(run: Run, metric: str, *, higher_is_better: bool) -> float:
    """Validation score of a run; higher is better, and -inf if the run diverged."""
    if "diverged" in run:
        return -inf
    mean = run["validation"][metric]["mean"]
    return mean if higher_is_better else -mean
