"""Aggregators on meta-gradients: `python -m experiments.grid experiment=grid_omniglot`.

A cell is a combination of adapted parameters, number of inner steps K, and aggregator. All cells have the
same model, the same episodes per seed and the same number of steps. The learning rates of each cell
(`tune`) are selected on validation tasks, with the first seed; a run is tested once, with the weights that
were best on validation. Runs are compared with the aggregator `against`, paired by seed.

Writes `table.json` and `table.md` after every cell. Rerun with the same output folder, `hydra.run.dir=...`,
to resume: runs that have a `result.json` are not repeated.

Examples:
  metamtl grid experiment=grid_omniglot hydra.run.dir=outputs/grid
"""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from . import train
from .tables.grid import Key, markdown, summary
from .tables.report import write_json, write_text
from .utils import options, parts
from .utils.command import command
from .utils.measure import higher
from .utils.runs import Run, quality, run_cached
from .utils.search import Point, Search, label

OWN = ("adapts", "inner_steps", "aggregators", "against", "tune", "search", "seeds", "measures", "gain")


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run all cells that are not finished; write and return the table."""
    options.check(cfg, "grid")
    options.check_names("against", [cfg.against], cfg.aggregators)
    measures, search = list(cfg.measures), Search(cfg)
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
    examples = search.examples()
    for key in keys:
        for values, seed in [*((v, first) for v in examples), *((examples[0], seed) for seed in others)]:
            parts.build(training(cfg, key, seed, values), sources)

    def cell(key: Key, seed: int, values: dict[str, Any]) -> Run:
        path = folder / f"{key[0]}_{key[1]}" / key[2] / label(values) / f"seed{seed}"
        return run_cached(training(cfg, key, seed, values), path, sources)

    cells: dict[Key, dict[str, Any]] = {}
    for key in keys:

        def score(values: Point, key: Key = key) -> float:
            return quality(cell(key, first, values), cfg.metric, higher_is_better=up)

        values = search.best(score)
        # The first seed has a result already, which is read.
        cells[key] = {"rates": values, "runs": {seed: cell(key, seed, values) for seed in cfg.seeds}}
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


@command("grid")
def main(cfg: DictConfig) -> None:
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    run(cfg, list(config.overrides.task), folder)
    print((folder / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
