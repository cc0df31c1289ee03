"""Aggregators on meta-gradients: `python -m experiments.grid experiment=grid_omniglot`.

A cell is what the inner loop adapts, its number of steps K, and an aggregator. All cells have the same net,
the same episodes for a seed and the same number of steps. Each chooses its rates (`tune`) on validation
tasks, with the first seed; a run is tested once, with the weights that were best on validation. Compared
are runs of one seed, in pairs with the aggregator `against`.

Writes `table.json` and `table.md` after every cell. A run whose `result.json` lies in the folder is not run
again: name the folder, `hydra.run.dir=...`, to go on after a break.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from . import train
from .grid_table import Key, markdown, summary
from .report import write_json, write_text
from .runs import Run, combinations, label, once, quality

OWN = ("adapts", "inner_steps", "aggregators", "against", "tune", "seeds", "measures", "gain")


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run all cells, or what is left of them; write and return the table."""
    if cfg.against not in cfg.aggregators:
        raise ValueError(
            f"against={cfg.against!r} is not one of the aggregators: {', '.join(cfg.aggregators)}."
        )
    if cfg.device == "auto":
        cfg.device = train.device()
    metrics = instantiate(cfg.task).metrics
    higher = {measure: metrics[measure].higher_is_better for measure in cfg.measures}
    up = metrics[cfg.metric].higher_is_better
    first, *others = cfg.seeds
    cells: dict[Key, dict[str, Any]] = {}
    names = [cfg.against, *(name for name in cfg.aggregators if name != cfg.against)]
    for name, adapts, steps in product(names, cfg.adapts, cfg.inner_steps):
        key = (adapts or "all", steps, name)
        place = folder / f"{key[0]}_{steps}" / name
        tries = [(cell(cfg, key, first, values, place), values) for values in combinations(cfg.tune)]
        found, values = max(tries, key=lambda tried: quality(tried[0], cfg.metric, higher_is_better=up))
        cells[key] = {"rates": values, "runs": {first: found}}
        for seed in others:
            cells[key]["runs"][seed] = cell(cfg, key, seed, values, place)
        table = summary(cfg, overrides, cells, higher)
        write_json(folder / "table.json", table)
        write_text(folder / "table.md", markdown(table))
    return table


def cell(cfg: DictConfig, key: Key, seed: int, rates: dict[str, Any], place: Path) -> Run:
    """One training and its test, or what it wrote the last time."""
    config = deepcopy(cfg)
    OmegaConf.set_struct(config, False)
    for name in OWN:
        del config[name]
    config.seed, config.inner.steps = seed, key[1]
    config.recipe.adapts = None if key[0] == "all" else key[0]
    config.recipe.aggregator = cfg.aggregators[key[2]]
    for name, value in rates.items():
        OmegaConf.update(config, name, value)
    return once(config, place / label(rates) / f"seed{seed}")


@hydra.main(version_base=None, config_path=train.CONF, config_name="grid")
def main(cfg: DictConfig) -> None:
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    run(cfg, list(config.overrides.task), folder)
    print((folder / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
