"""The error after every inner step, by shots: `python -m experiments.curves experiment=sinusoid_record`.

Trains every method of `run` for every number of `shots` with every seed. New tasks are adapted as in
training, but for ten steps (`adapt: longer`), and are measured after each. The options in `tune` are
selected for every method on validation tasks, with `tune_seeds` and `tune_shots`. Writes `curves.json`,
`curves.md`, `curves.png`, and a folder for every run. Rerun with the same folder to resume.

Examples:
  metamtl curves experiment=sinusoid_record
  metamtl curves experiment=sinusoid_record 'run=[maml,metasgd]' 'shots=[10]' 'seeds=[0,1,2]'
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from . import train
from .tables.curves import draw, markdown
from .tables.report import environment, write_json, write_text
from .utils import options, parts
from .utils.command import command
from .utils.comparison import estimate
from .utils.configs import with_changes
from .utils.measure import higher
from .utils.runs import quality, run_cached
from .utils.search import Point, Search, label

OWN = {"methods", "run", "shots", "seeds", "tune", "tune_seeds", "tune_shots", "search", "seed"}


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train all methods; write and return the table.

    Raises:
        ValueError: an option that cannot work; before the first training.
    """
    if cfg.device == "auto":
        cfg.device = train.device()
    options.check(cfg, "curves")
    options.check_names("run", cfg.run, cfg.methods)
    passed_on = [text for text in overrides if text.lstrip("+~").split("=")[0].split(".")[0] not in OWN]
    search, sources = Search(cfg), parts.Sources()
    up = higher(sources(cfg).split("validation"), cfg.metric)

    def training(method: str, shots: int, seed: int, values: Point) -> DictConfig:
        config = with_changes(passed_on, cfg.methods[method], seed)
        OmegaConf.update(config, "task.shots", shots)
        for name, value in values.items():
            OmegaConf.update(config, name, value)
        config.device = cfg.device
        return config

    def trained(method: str, shots: int, seed: int, values: Point) -> dict[str, Any]:
        place = folder / f"{method}_{shots}shot" / label(values) / f"seed{seed}"
        return run_cached(training(method, shots, seed, values), place, sources)

    for method, shots, values in product(cfg.run, cfg.shots, search.examples()):
        built = parts.build(training(method, shots, cfg.seeds[0], values), sources)
        if len(built.strategies) != 1:
            raise options.OptionError(
                f"{method} has the adaptation strategies {', '.join(built.strategies)}; a curve has one, so"
                " select one, such as adapt=longer."
            )
    rows = []
    for method in cfg.run:

        def score(values: Point, method: str = method) -> float:
            runs = (trained(method, cfg.tune_shots, seed, values) for seed in cfg.tune_seeds)
            return sum(quality(result, cfg.metric, higher_is_better=up) for result in runs)

        best = search.best(score)
        for shots in cfg.shots:
            results = [trained(method, shots, seed, best) for seed in cfg.seeds]
            by_seed = dict(zip(cfg.seeds, results))
            rows.append({"method": method, "shots": shots, "tuned": best, **_row(by_seed, cfg.metric)})
            table = {
                "experiment": {"overrides": passed_on, "metric": cfg.metric},
                **environment(cfg.device),
                "seeds": list(cfg.seeds),
                "tune": OmegaConf.to_container(cfg.tune) if cfg.tune else {},
                "tune_seeds": list(cfg.tune_seeds),
                "tune_shots": cfg.tune_shots,
                "tasks": cfg.test.tasks,
                "interval": "95 %, Student t over seeds",
                "rows": rows,
            }
            write_json(folder / "curves.json", table)
            write_text(folder / "curves.md", markdown(table))
    draw(table, folder / "curves.png")
    return table


def _row(by_seed: dict[int, dict[str, Any]], metric: str) -> dict[str, Any]:
    """Mean and interval over seeds after every inner step, and the steps and seconds of a training.

    If any seed diverged, in training or on a single task of the test, there is no mean, but its message.
    """
    diverged = {str(seed): run["diverged"] for seed, run in by_seed.items() if "diverged" in run}
    if diverged:
        return {"curve": [], "diverged": diverged}
    results = list(by_seed.values())
    curves = [[stage[metric]["mean"] for stage in result["curve"]] for result in results]
    curve = [estimate(list(values)) for values in zip(*curves, strict=True)]
    mean_seconds = sum(result["seconds"] for result in results) / len(results)
    return {"curve": curve, "steps": results[0]["steps"], "seconds": mean_seconds}


@command("curves")
def main(cfg: DictConfig) -> None:
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    run(cfg, list(config.overrides.task), folder)
    print((folder / "curves.md").read_text(encoding="utf-8"))
    print(f"table: {folder / 'curves.json'}\nfigure: {folder / 'curves.png'}")


if __name__ == "__main__":
    raise SystemExit(main())
