"""The trainings that make up a table: each run once, its rates chosen on validation."""

from __future__ import annotations

import json
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


def once(cfg: DictConfig, folder: Path, sources: Sources | None = None) -> Run:
    """One training and its test, or what it wrote into the folder the last time.

    A training whose loss is not finite is a result too, `{"config": ..., "diverged": ...}`: a rate was too
    high.

    Raises:
        ValueError: the folder has a result of another config.
    """
    path = folder / "result.json"
    config = OmegaConf.to_container(cfg, resolve=False)
    if path.is_file():
        known: Run = json.loads(path.read_text(encoding="utf-8"))
        if known["config"] != json.loads(json.dumps(config)):
            raise ValueError(f"{path} is of another config; take another hydra.run.dir, or delete it.")
        return known
    try:
        return train.run(cfg, folder, sources)
    except FloatingPointError as error:
        diverged = {"config": config, "diverged": str(error)}
        write_json(path, diverged)
        return diverged


def combinations(tune: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """`{"optimizer.lr": [1e-3, 3e-3]}` as `[{"optimizer.lr": 1e-3}, {"optimizer.lr": 3e-3}]`."""
    tune = tune or {}
    return [dict(zip(tune, values)) for values in product(*tune.values())]


def label(values: Mapping[str, Any]) -> str:
    """A combination, as the name of a folder."""
    return ",".join(f"{name}={value}" for name, value in values.items()) or "as given"


def quality(run: Run, metric: str, *, higher_is_better: bool) -> float:
    """How good a run is on validation; more is better, and a run that diverged is the worst."""
    if "diverged" in run:
        return -inf
    mean = run["validation"][metric]["mean"]
    return mean if higher_is_better else -mean
