"""Search for inner and outer learning rates, or any other options, of one recipe.

Every point of `tune` is trained with the seeds `tune_seeds` and scored on validation tasks. The best one is
trained with the seeds `seeds`, and tested once. `tune` maps options to lists of values, or to intervals;
`search.method` is `grid` (every combination of the lists), `random`, or `optuna`, which proposes points by
the scores of earlier ones. Writes `search.json`, `search.md`, and a folder for every training. Rerun with
the same folder to resume.

Examples:
  metamtl search experiment=sinusoid recipe=maml search.method=optuna search.trials=20
    'tune={inner.lr:{low:1e-3,high:1.0,log:true},optimizer.lr:{low:1e-4,high:1e-1,log:true}}'
  metamtl search experiment=sinusoid search.method=grid search.trials=null 'tune={inner.lr:[0.01,0.1]}'
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metamtl import Estimate

from . import train
from .tables.report import environment, write_json, write_text
from .tables.search import markdown
from .utils import options, parts
from .utils.command import command
from .utils.measure import higher
from .utils.runs import Run, quality, run_cached
from .utils.search import Point, Search, label

OWN = ("tune", "search", "tune_seeds", "seeds")


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Search, train with the best values, and test; write and return the table.

    Raises:
        OptionError: an invalid option, or a point that cannot be built; before the first training.
        ImportError: a part requires a package that is not installed; before the first training.
        FloatingPointError: every point diverges, or the best one with one of the seeds.
    """
    options.check(cfg, "search")
    search = Search(cfg)
    if not search.space:
        raise options.OptionError(
            "tune={}: there is nothing to search; e.g. 'tune={inner.lr:[0.01,0.1]}' or"
            " 'tune={inner.lr:{low:1e-3,high:1.0,log:true}}'."
        )
    if both := sorted(set(cfg.seeds) & set(cfg.tune_seeds)):
        raise options.OptionError(
            f"seeds and tune_seeds both have {both[0]}: a result with a seed that selected it is too good."
        )
    if cfg.device == "auto":
        cfg.device = train.device()
    sources = parts.Sources()
    up = higher(sources(cfg).split("validation"), cfg.metric)
    for seed in (*cfg.tune_seeds, *cfg.seeds):
        for point in search.examples():
            parts.build(training(cfg, point, seed), sources)

    def one(point: Point, seed: int) -> Run:
        return run_cached(training(cfg, point, seed), folder / label(point) / f"seed{seed}", sources)

    def score(point: Point) -> float:
        scores = [quality(one(point, seed), cfg.metric, higher_is_better=up) for seed in cfg.tune_seeds]
        return sum(scores) / len(scores)

    trials = search.run(score)
    best, value = max(trials, key=lambda trial: trial[1])
    if not isfinite(value):
        raise FloatingPointError(f"all {len(trials)} points of tune diverge; try smaller rates.")
    runs = {seed: one(best, seed) for seed in cfg.seeds}
    for seed, result in runs.items():
        if "diverged" in result:
            raise FloatingPointError(f"{label(best)}, seed {seed}: {result['diverged']}")
    sign = 1 if up else -1
    table = {
        "experiment": {"overrides": overrides, "metric": cfg.metric},
        **environment(cfg.device),
        "tune": OmegaConf.to_container(cfg.tune),
        "search": OmegaConf.to_container(cfg.search),
        "tune_seeds": list(cfg.tune_seeds),
        "seeds": list(cfg.seeds),
        "interval": "95 %, Student t over seeds" if len(runs) > 1 else "95 %, Student t over test tasks",
        "trials": [
            {"values": point, "validation": sign * value if isfinite(value) else None}
            for point, value in trials
        ],
        "best": best,
        "validation": over_seeds([result["validation"][cfg.metric] for result in runs.values()]),
        "test": over_seeds([result["test"][cfg.metric] for result in runs.values()]),
    }
    write_json(folder / "search.json", table)
    write_text(folder / "search.md", markdown(table))
    return table


def training(cfg: DictConfig, point: Point, seed: int) -> DictConfig:
    """The config of one training."""
    config = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    for name in OWN:
        del config[name]
    config.seed = seed
    for name, value in point.items():
        OmegaConf.update(config, name, value)
    return config


def over_seeds(estimates: list[dict[str, Any]]) -> dict[str, float]:
    """The mean over seeds with its interval; that of a single seed is over its tasks."""
    if len(estimates) == 1:
        return {"mean": estimates[0]["mean"], "ci95": estimates[0]["ci95"]}
    found = Estimate.of(torch.tensor([entry["mean"] for entry in estimates], dtype=torch.float64))
    return {"mean": found.mean, "ci95": found.ci95}


@command("search")
def main(cfg: DictConfig) -> None:
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    run(cfg, list(config.overrides.task), folder)
    print((folder / "search.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
