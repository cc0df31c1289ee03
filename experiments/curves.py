"""The error after every inner step, by shots: `python -m experiments.curves experiment=sinusoid_record`.

Trains every method of `run` for every number of `shots` with every seed, and selects weights and the
options in `tune` on validation tasks, which are adapted as in training (`adapt=as_trained`); options with
`tune_seeds` and `tune_shots`. Then new tasks are adapted for `adaptation_steps` steps, and measured after
each. Writes `curves.json`, `curves.md`, `curves.png`, and a folder for every run. Rerun with the same
folder to resume.

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

from metamtl import Recipe, adaptation_curve, load
from metamtl.adapters import with_steps

from . import train
from .tables.curves import draw, markdown
from .tables.report import environment, read_json, write_json, write_text
from .utils import options, parts
from .utils.command import command
from .utils.comparison import estimate
from .utils.configs import with_changes
from .utils.measure import higher
from .utils.runs import quality, run_cached
from .utils.search import Point, Search, label
from .utils.streams import TEST, stream

OWN = {
    "adaptation_steps",
    "methods",
    "run",
    "shots",
    "seeds",
    "tune",
    "tune_seeds",
    "tune_shots",
    "search",
    "seed",
}


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

    def place(method: str, shots: int, seed: int, values: Point) -> Path:
        return folder / f"{method}_{shots}shot" / label(values) / f"seed{seed}"

    def trained(*of: Any) -> dict[str, Any]:
        return run_cached(training(*of), place(*of), sources)

    for method, shots, values in product(cfg.run, cfg.shots, search.examples()):
        built = parts.build(training(method, shots, cfg.seeds[0], values), sources)
        if len(built.strategies) != 1:
            raise options.OptionError(
                f"{method} has the adaptation strategies {', '.join(built.strategies)}, but a curve has"
                " one: that of the training, with adapt=as_trained."
            )
        with_steps(built.recipe.adapter, cfg.adaptation_steps)  # raises if it has no steps
    rows = []
    for method in cfg.run:

        def score(values: Point, method: str = method) -> float:
            runs = (trained(method, cfg.tune_shots, seed, values) for seed in cfg.tune_seeds)
            return sum(quality(result, cfg.metric, higher_is_better=up) for result in runs)

        best = search.best(score)
        for shots in cfg.shots:
            results = [trained(method, shots, seed, best) for seed in cfg.seeds]
            places = [place(method, shots, seed, best) for seed in cfg.seeds]
            curves = [measured(place, cfg) for place in places]
            rows.append({"method": method, "shots": shots, "tuned": best, **_row(cfg, results, curves)})
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


def measured(place: Path, cfg: DictConfig) -> list[float]:
    """The mean over new tasks before adaptation and after every step, until a task is no longer finite."""
    if "diverged" in read_json(place / "result.json"):
        return []
    model, recipe, source, result = load(place)
    split, seed = source.split("test"), result["config"]["seed"]
    episodes = split.sample(cfg.test.tasks, stream(seed, TEST))
    for steps in range(cfg.adaptation_steps, -1, -1):
        longer = Recipe(with_steps(recipe.adapter, steps))
        try:
            curve = adaptation_curve(model, longer, episodes, split.loss, metrics=split.metrics)
        except FloatingPointError:
            continue
        return [stage[cfg.metric].mean for stage in curve]
    return []


def _row(cfg: DictConfig, results: list[dict[str, Any]], curves: list[list[float]]) -> dict[str, Any]:
    """Mean and interval over seeds after every step, and the steps and seconds of a training.

    After a step with which a task of some seed diverged there is no mean, but the seeds.
    """
    stages: list[dict[str, Any]] = []
    for step in range(cfg.adaptation_steps + 1):
        diverged = [seed for seed, curve in zip(cfg.seeds, curves) if len(curve) <= step]
        values = [curve[step] for curve in curves if len(curve) > step]
        stages.append({"diverged": diverged} if diverged else estimate(values))
    ended = [result for result in results if "diverged" not in result]
    seconds = sum(result["seconds"] for result in ended) / len(ended) if ended else None
    return {"curve": stages, "steps": max((r["steps"] for r in ended), default=None), "seconds": seconds}


@command("curves")
def main(cfg: DictConfig) -> None:
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    run(cfg, list(config.overrides.task), folder)
    print((folder / "curves.md").read_text(encoding="utf-8"))
    print(f"table: {folder / 'curves.json'}\nfigure: {folder / 'curves.png'}")


if __name__ == "__main__":
    raise SystemExit(main())
