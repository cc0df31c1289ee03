"""Tasks together against each by itself: `python -m experiments.multitask experiment=multimnist`.

Trains one model for each task alone, then one for all tasks by each method, from the same seeds with the
same steps. Learning rates of every row, the single tasks' too, are chosen on validation by seeds of their
own; so are the weights of every run, those of a method by `delta_m` against the single tasks' validation.
Writes `multitask.json`, `multitask.md`, and the folder of every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metamtl import Estimate, delta_m

from . import train
from .tables.multitask import markdown
from .tables.report import environment, sign, write_json, write_text
from .utils import options, parts
from .utils.measure import higher
from .utils.runs import Run, grid_points, label, quality, run_cached

OWN = ("methods.", "run=", "seeds=", "tune=", "tune_seeds=", "seed=")
SINGLE = "single_tasks"  # as teachers: what each task's own run of the same seed has learned
GROUPS = ("net", "recipe", "optimizer")  # of configs: a method may name one of each
Results = dict[int, Run]  # by seed


class Rows:
    """Trains the rows of one table; a run whose result is there already is read instead.

    `measures` are the first metrics of the tasks, `{task: "task/metric"}`; `higher` is by measure whether
    more is better.
    """

    def __init__(self, cfg: DictConfig, overrides: list[str], folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self.sources = parts.Sources()
        family = self.sources(cfg).split("validation")
        higher(family, cfg.metric)  # raises if the tasks have no such metric
        self.measures = {task: f"{task}/{next(iter(family.metrics[task]))}" for task in family.loss}
        self.higher = {measure: higher(family, measure) for measure in self.measures.values()}
        self.passed_on = [text for text in overrides if not text.lstrip("+").startswith(OWN)]
        self.chosen: dict[str, dict[str, Any]] = {}  # for each row

    def check(self, rows: Mapping[str, DictConfig]) -> None:
        """Build the parts of these rows, with every combination of `tune`; nothing is trained.

        Raises:
            ValueError: a row, with its changes, cannot be built.
            ImportError: it needs a package that is not installed.
        """
        for (row, changes), values in product(rows.items(), grid_points(self.cfg.tune)):
            try:
                one = self._config(row, changes, values, self.cfg.seeds[0])
                if one.teachers == SINGLE:  # their models are trained later
                    parts.part("distillation", one.distillation)
                    one.teachers = None
                parts.build(one, self.sources)
            except (ImportError, ValueError) as error:
                kind = ImportError if isinstance(error, ImportError) else ValueError
                raise kind(f"{row}, {label(values)}: {error}") from error

    def __call__(self, row: str, changes: Any) -> tuple[Results, dict[str, Any]]:
        """The results of one row for every seed, and the learning rates (or what else) chosen for it.

        Raises:
            FloatingPointError: the best of the rates diverges with some seed.
        """
        self.chosen[row] = tuned = self._tuned(row, changes)
        found = {seed: self._run(row, changes, tuned, seed) for seed in self.cfg.seeds}
        for seed, run in found.items():
            if "diverged" in run:
                raise FloatingPointError(f"{row}, {label(tuned)}, seed {seed}: {run['diverged']}")
        return found, tuned

    def _tuned(self, row: str, changes: Any) -> dict[str, Any]:
        """The best of all combinations of `tune` on validation, over the seeds for it."""
        tries = grid_points(self.cfg.tune)
        metric = changes.get("metric", self.cfg.metric)
        up = metric == "delta_m" or self.higher[metric]

        def score(values: dict[str, Any]) -> float:
            runs = (self._run(row, changes, values, seed) for seed in self.cfg.tune_seeds)
            return sum(quality(run, metric, higher_is_better=up) for run in runs)

        return tries[0] if len(tries) == 1 else max(tries, key=score)

    def _run(self, row: str, changes: Any, values: dict[str, Any], seed: int) -> Run:
        one = self._config(row, changes, values, seed)
        if one.teachers == SINGLE:
            rows = {task: f"single_{task}" for task in self.measures}
            one.teachers = {
                task: str(self._place(row, self.chosen[row], seed)) for task, row in rows.items()
            }
        return run_cached(one, self._place(row, values, seed), self.sources)

    def _config(self, row: str, changes: Any, values: dict[str, Any], seed: int) -> DictConfig:
        """The config of one training; its teachers may still be `SINGLE`."""
        groups = {group: changes[group] for group in GROUPS if isinstance(changes.get(group), str)}
        chosen = [f"{group}={choice}" for group, choice in groups.items()]
        one = compose("train", [*self.passed_on, *chosen, f"seed={seed}"])
        options.check_known(one, f"methods.{row}", changes)
        OmegaConf.set_struct(one, False)  # methods may set what no config file has
        one.merge_with({key: value for key, value in changes.items_ex(resolve=False) if key not in groups})
        for key, value in values.items():
            OmegaConf.update(one, key, value)
        one.device = self.cfg.device
        return one

    def _place(self, row: str, values: dict[str, Any], seed: int) -> Path:
        return self.folder / row / label(values) / f"seed{seed}"


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train all rows; write and return the table.

    Raises:
        ValueError: an option that cannot work, or a row that cannot be built; before the first training.
        ImportError: a row needs a package that is not installed; before the first training.
    """
    if cfg.device == "auto":
        cfg.device = train.device()
    methods = options.names(cfg, "run")
    if unknown := sorted(set(methods) - set(cfg.methods)):
        raise ValueError(f"run names {unknown}; the methods are {', '.join(cfg.methods)}.")
    options.check_training(cfg)
    options.check_seeds(cfg)
    options.check_seeds(cfg, "tune_seeds")
    options.check_tune(cfg)
    rows = Rows(cfg, overrides, folder)
    names, direction = rows.measures, rows.higher
    singles = {
        task: OmegaConf.create({"task": {"tasks": [task]}, "metric": measure, "tasks_per_step": 1})
        for task, measure in names.items()
    }

    def joint(method: str, reference: dict[str, float]) -> DictConfig:
        selects = OmegaConf.create({"metric": "delta_m", "reference": reference})
        return cast(DictConfig, OmegaConf.merge(selects, cfg.methods[method]))

    any_reference = dict.fromkeys(names.values(), 1.0)  # the real one is known after the single tasks
    rows.check(
        {f"single_{task}": changes for task, changes in singles.items()}
        | {method: joint(method, any_reference) for method in methods}
    )
    alone, rates = {}, {}
    for task, changes in singles.items():
        alone[task], rates[task] = rows(f"single_{task}", changes)

    def of_alone(split: str, seed: int) -> dict[str, float]:
        return {m: alone[task][seed][split][m]["mean"] for task, m in names.items()}

    reference = _mean([of_alone("validation", seed) for seed in cfg.seeds])
    baseline = _mean([of_alone("test", seed) for seed in cfg.seeds])
    table: dict[str, Any] = {
        "experiment": {
            "overrides": [text for text in overrides if not text.startswith(("run=", "seeds="))],
            "tune": OmegaConf.to_container(cfg.tune),
            "tune_seeds": list(cfg.tune_seeds),
        },
        **environment(cfg.device),
        "seeds": list(cfg.seeds),
        "interval": "95 %, Student t over seeds",
        "higher_is_better": direction,
        "rows": [
            {
                "method": "single tasks",
                "test": {m: _estimate([of_alone("test", s)[m] for s in cfg.seeds]) for m in direction},
                "validation": {
                    m: _estimate([of_alone("validation", s)[m] for s in cfg.seeds]) for m in direction
                },
                "tuned": rates,
                "parameters": sum(found[cfg.seeds[0]]["parameters"] for found in alone.values()),
                "seconds": sum(_seconds(found) for found in alone.values()),
            }
        ],
    }
    changes_by_seed: dict[str, list[float]] = {}
    for method in methods:
        found, tuned = rows(method, joint(method, reference))
        tests = {seed: {m: found[seed]["test"][m]["mean"] for m in direction} for seed in cfg.seeds}
        # Each seed against the single tasks of that seed, so that the interval has the noise of both.
        by_seed = [
            delta_m(tests[seed], baseline, direction) - delta_m(of_alone("test", seed), baseline, direction)
            for seed in cfg.seeds
        ]
        changes_by_seed[method] = by_seed
        first = changes_by_seed[methods[0]]
        table["rows"].append(
            {
                "method": method,
                "test": {m: _estimate([tests[s][m] for s in cfg.seeds]) for m in direction},
                "validation": {
                    m: _estimate([found[s]["validation"][m]["mean"] for s in cfg.seeds]) for m in direction
                },
                "delta_m": _estimate(by_seed),
                "against_first": _estimate([a - b for a, b in zip(by_seed, first)]),
                "signs": {
                    m: sign(
                        _estimate(
                            [(tests[s][m] - of_alone("test", s)[m]) * (1 if up else -1) for s in cfg.seeds]
                        )
                    )
                    for m, up in direction.items()
                },
                "tuned": tuned,
                "parameters": found[cfg.seeds[0]]["parameters"],
                "seconds": _seconds(found),
            }
        )
        write_json(folder / "multitask.json", table)
        write_text(folder / "multitask.md", markdown(table))
    return table


def _estimate(values: list[float]) -> dict[str, float]:
    found = Estimate.of(torch.tensor(values, dtype=torch.float64))
    return {"mean": found.mean, "ci95": found.ci95}


def _mean(of_seeds: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in of_seeds) / len(of_seeds) for name in of_seeds[0]}


def _seconds(found: Results) -> float:
    return sum(result["seconds"] for result in found.values()) / len(found)


@hydra.main(version_base=None, config_path=train.CONF, config_name="multitask")
def main(cfg: DictConfig) -> None:
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    run(cfg, list(config.overrides.task), folder)
    print((folder / "multitask.md").read_text(encoding="utf-8"))
    print(f"table: {folder / 'multitask.json'}")


if __name__ == "__main__":
    main()
