"""Recipes side by side: `python -m experiments.compare experiment=glyphs_5way_1shot 'recipes=[mtl,maml]'`.

All recipes have the same net, the same episodes and the same number of gradient evaluations. Every one is
tested with the adaptation strategy that validation selects among those of `adapt=`, and as it was trained.
Writes `table.md`, `table.json` and `figure.png`, and a folder for every run: `<recipe>/seed<seed>/`. Rerun
with the same folder to resume.

Examples:
  metamtl compare experiment=glyphs_5way_1shot 'recipes=[mtl,anil,maml,protonet]' 'seeds=[0,1,2]'
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from metamtl import Estimate

from . import train
from .tables.compare import markdown
from .tables.figure import draw
from .tables.published import published
from .tables.report import environment, read_json, write_json, write_text
from .utils import options, parts
from .utils.command import command
from .utils.configs import compose
from .utils.measure import higher, trivial
from .utils.runs import run_cached
from .utils.streams import SEEN, TEST, TRAIN, stream

OWN = ("recipes=", "seeds=", "recipe=", "seed=")


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train every recipe with every seed; write and return the table. One that diverges is named below it.

    Raises:
        FloatingPointError: every recipe diverges.
        ValueError: an option that cannot work; before the first training.
    """
    if cfg.device == "auto":
        cfg.device = train.device()
    passed_on = [text for text in overrides if not text.lstrip("+").startswith(OWN)]
    options.check(cfg, "compare")
    names = list(cfg.recipes)
    budget = cfg.gradient_evaluations
    if budget is None and cfg.steps is not None:
        budget = 2 * cfg.steps * cfg.tasks_per_step

    def training(recipe: str, seed: int) -> DictConfig:
        one = compose("train", [*passed_on, f"recipe={recipe}", f"seed={seed}"])
        one.gradient_evaluations, one.steps = budget, None  # the budget, or max_minutes, ends a run
        one.device = cfg.device
        return one

    sources = parts.Sources()
    for recipe, seed in product(names, cfg.seeds):  # what cannot be built ends it before the first training
        parts.build(training(recipe, seed), sources)
    runs: dict[str, list[dict[str, Any]]] = {}
    for recipe in names:
        for seed in cfg.seeds:
            place = folder / recipe / f"seed{seed}"
            runs.setdefault(recipe, []).append(run_cached(training(recipe, seed), place, sources))
    diverged: dict[str, str] = {}  # the message of the first seed that diverged
    for recipe, results in runs.items():
        for seed, result in zip(cfg.seeds, results):
            if "diverged" in result:
                diverged.setdefault(recipe, f"seed {seed}: {result['diverged']}")
    runs = {recipe: results for recipe, results in runs.items() if recipe not in diverged}
    if not runs:
        raise FloatingPointError(f"every recipe diverged. {names[0]}, {diverged[names[0]]}")
    rows = [_row(recipe, results, cfg.metric) for recipe, results in runs.items()]
    sign = 1 if higher(sources(cfg).split("test"), cfg.metric) else -1
    best = max(rows, key=lambda row: sign * row["new"]["mean"])["recipe"]
    for row in rows:
        row["to_best"] = _difference(folder, row["recipe"], best, cfg)
        row["published"] = published(cfg.task, row["recipe"])
    rows.append(_trivial_row(cfg))
    table = {
        "experiment": {
            "overrides": passed_on,
            "metric": cfg.metric,
            "gradient_evaluations": budget,
            "max_minutes": cfg.max_minutes,
        },
        **environment(next(iter(runs.values()))[0]["config"]["device"]),
        "seeds": list(cfg.seeds),
        "interval": "95 %, Student t over seeds"
        if len(cfg.seeds) > 1
        else "95 %, Student t over test tasks",
        "batchnorm": next(iter(runs.values()))[0]["batchnorm"],
        "rows": rows,
        "diverged": diverged,
    }
    write_json(folder / "table.json", table)
    write_text(folder / "table.md", markdown(table))
    draw(runs, cfg.metric, folder / "figure.png")
    return table


def _row(recipe: str, results: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    def over_seeds(split: str, what: str = "mean") -> dict[str, float]:
        return of_seeds([result[split][metric] for result in results], what)

    def of_seeds(estimates: list[dict[str, float]], what: str = "mean") -> dict[str, Any]:
        values = [estimate[what] for estimate in estimates]
        if len(values) == 1:
            return {"mean": values[0], "ci95": estimates[0]["ci95"] if what == "mean" else None}
        found = Estimate.of(torch.tensor(values, dtype=torch.float64))
        return {"mean": found.mean, "ci95": found.ci95}

    kinds = [result.get("test_by_batchnorm", {}) for result in results]
    return {
        "recipe": recipe,
        "seen": over_seeds("seen"),
        "new": over_seeds("test"),
        "by_batchnorm": {
            kind: of_seeds([found[kind][metric] for found in kinds])
            for kind in kinds[0]
            if all(found.get(kind) for found in kinds)
        },
        "as_trained": over_seeds("test_as_trained") if results[0]["test_as_trained"] else None,
        "worst_tenth": over_seeds("test", "worst_decile"),
        "adaptation": [f"{r['adaptation']['strategy']}, {r['adaptation']['steps']}" for r in results],
        "transductive": any(any(r["transductive"].values()) for r in results),
        "gradient_evaluations": results[0]["gradient_evaluations"],
        "steps": results[0]["steps"],
        "stopped_by": sorted({result["stopped_by"] for result in results}),
        "seconds": sum(result["seconds"] for result in results) / len(results),
    }


def _difference(folder: Path, recipe: str, best: str, cfg: DictConfig) -> dict[str, float] | None:
    """The paired difference to the best recipe on the new tasks: over tasks, or over several seeds."""
    if recipe == best:
        return None
    pairs = []
    for seed in cfg.seeds:
        paths = [folder / name / f"seed{seed}" / "tasks.json" for name in (recipe, best)]
        values = [read_json(path, "test")["test"][cfg.metric] for path in paths]
        ours, others = (Estimate.of(torch.tensor(value, dtype=torch.float64)) for value in values)
        pairs.append(ours.difference(others))
    if len(pairs) == 1:
        return {"mean": pairs[0].mean, "ci95": pairs[0].ci95}
    over_seeds = Estimate.of(torch.tensor([pair.mean for pair in pairs], dtype=torch.float64))
    return {"mean": over_seeds.mean, "ci95": over_seeds.ci95}


def _trivial_row(cfg: DictConfig) -> dict[str, Any]:
    """The trivial answer, on the very test tasks of the first seed."""
    source = instantiate(cfg.task)
    splits = {"seen": source.split("train"), "new": source.split("test")}
    kinds = {"seen": SEEN, "new": TEST}
    examples = splits["seen"].sample(cfg.test.tasks, stream(cfg.seeds[0], TRAIN))
    net, recipe = instantiate(cfg.trivial.net), instantiate(cfg.trivial.recipe)
    found = {
        name: trivial(
            net.to(cfg.device),
            recipe,
            family,
            examples,
            family.sample(cfg.test.tasks, stream(cfg.seeds[0], kinds[name])),
        )[cfg.metric]
        for name, family in splits.items()
    }
    return {
        "recipe": f"trivial: {cfg.trivial.name}",
        **{name: {"mean": value["mean"], "ci95": value["ci95"]} for name, value in found.items()},
        "as_trained": None,
        "to_best": None,
        "worst_tenth": {"mean": found["new"]["worst_decile"], "ci95": None},
        "adaptation": [],
        "gradient_evaluations": 0,
        "steps": 0,
        "seconds": 0.0,
    }


@command("compare")
def main(cfg: DictConfig) -> None:
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    run(cfg, list(config.overrides.task), folder)
    print((folder / "table.md").read_text(encoding="utf-8"))
    print(f"table: {folder / 'table.json'}\nfigure: {folder / 'figure.png'}")


if __name__ == "__main__":
    raise SystemExit(main())
