"""The trainings of a table: cached runs, and the selection score."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .. import train
from ..tables.report import write_json
from .parts import Sources
from .processes import is_first

Run = dict[str, Any]


def run_cached(cfg: DictConfig, folder: Path, sources: Sources | None = None) -> Run:
    """`train.run`; if a loss is not finite, the result is `{"config": ..., "diverged": ...}`."""
    try:
        return train.run(cfg, folder, sources)
    except FloatingPointError as error:
        diverged = {"config": OmegaConf.to_container(cfg, resolve=False), "diverged": str(error)}
        if is_first():
            write_json(folder / "result.json", diverged)
        return diverged


def quality(run: Run, metric: str, *, higher_is_better: bool) -> float:
    """Validation score of a run; higher is better, and -inf if the run diverged."""
    if "diverged" in run:
        return -inf
    mean = run["validation"][metric]["mean"]
    return mean if higher_is_better else -mean
