"""Aggregators on meta-gradients: `python -m experiments.grid experiment=grid_omniglot`.

A cell is a combination of adapted parameters, number of inner steps K, and aggregator. All cells have the
same model, the same episodes per seed and the same number of steps. The learning rates of each cell
(`tune`) are selected on validation tasks, with the first seed; a run is tested once, with the weights that
were best on validation. Runs are compared with the aggregator `against`, paired by seed.

Writes `table.json` and `table.md` after every cell. Rerun with the same output folder, `hydra.run.dir=...`,
to resume: runs that have a `result.json` are not repeated.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from . import train
from .tables.grid import Key, markdown, summary
from .tables.report import write_json, write_text
from .utils import options, parts
from .utils.measure import higher
from .utils.runs import Run, grid_points, label, quality, run_cached

OWN = ("adapts", "inner_steps", "aggregators", "against", "tune", "seeds", "measures", "gain")


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run all cells that are not finished; write and return the table."""
    measures = _check(cfg)
    if cfg.against not in cfg.aggregators:
        raise ValueError(
            f"against={cfg.against!r} is not one of the aggregators: {', '.join(cfg.aggregators)}."
        )
    if cfg.device == "auto":
        cfg.device = train.device()
    sources = parts.Sources()
    family = sources(cfg)
    directions = {measure: higher(family, measure) for measure in measures}
    up = higher(family, cfg.metric)
    first, *others = cfg.seeds
    names = [cfg.against, *(name for name in cfg.aggregators if name != cfg.against)]
    keys: list[Key] = [
        (adapts or "all", steps, name)
        for name, adapts, steps in product(names, cfg.adapts, cfg.inner_steps)
    ]
    # Build all parts once, so that invalid options raise before the first training.
    for key, values in product(keys, grid_points(cfg.tune)):
        parts.build(training(cfg, key, first, values), sources)

    def cell(key: Key, seed: int, values: dict[str, Any]) -> Run:
        path = folder / f"{key[0]}_{key[1]}" / key[2] / label(values) / f"seed{seed}"
        return run_cached(training(cfg, key, seed, values), path, sources)

    cells: dict[Key, dict[str, Any]] = {}
    for key in keys:
        trials = [(cell(key, first, values), values) for values in grid_points(cfg.tune)]
        best, values = max(trials, key=lambda trial: quality(trial[0], cfg.metric, higher_is_better=up))
        cells[key] = {"rates": values, "runs": {first: best}}
        for seed in others:
            cells[key]["runs"][seed] = cell(key, seed, values)
        table = summary(cfg, overrides, cells, directions)
        write_json(folder / "table.json", table)
        write_text(folder / "table.md", markdown(table))
    return table


def training(cfg: DictConfig, key: Key, seed: int, rates: dict[str, Any]) -> DictConfig:
    """The config of one training."""
    config = deepcopy(cfg)
    OmegaConf.set_struct(config, False)
    for name in OWN:
        del config[name]
    config.seed, config.inner.steps = seed, key[1]
    config.recipe.adapts = None if key[0] == "all" else key[0]
    config.recipe.aggregator = cfg.aggregators[key[2]]
    for name, value in rates.items():
        OmegaConf.update(config, name, value)
    return config


def _check(cfg: DictConfig) -> list[str]:
    """Check the options of the grid; return its measures."""
    options.check_training(cfg)
    options.check_seeds(cfg)
    options.check_tune(cfg)
    for name in ("adapts", "inner_steps"):
        if not isinstance(cfg[name], ListConfig) or not cfg[name]:
            raise ValueError(f"{name}={cfg[name]}: expected a list, e.g. {name}=[{cfg[name]}].")
    return options.names(cfg, "measures")


@hydra.main(version_base=None, config_path=train.CONF, config_name="grid")
def main(cfg: DictConfig) -> None:
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    run(cfg, list(config.overrides.task), folder)
    print((folder / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
