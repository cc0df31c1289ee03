"""The trainings of a table of named tasks: its rows, each tuned and trained with every seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from . import options, parts
from .configs import with_changes
from .measure import epochs, higher, sizes
from .runs import Run, quality, run_cached
from .search import Search, label

SINGLE = "single_tasks"  # as teachers: the single-task models of the same seed
FOREIGN = {name.partition(".")[0] for table in options.TABLES.values() for name in table}
FOREIGN -= {name.partition(".")[0] for name in options.TRAINING}
FOREIGN |= {"seed"}  # options of the table that a training does not have, or that are set for each row
Results = dict[int, Run]  # by seed


class Rows:
    """Trains the rows of one table; runs that have a result are read instead.

    `measures` is the first metric of each task, `{task: "task/metric"}`; `higher` maps each measure to
    whether higher values are better.
    """

    def __init__(self, cfg: DictConfig, overrides: list[str], folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self.sources = parts.Sources()
        family = self.sources(cfg).split("validation")
        if not isinstance(family.loss, Mapping):
            raise options.OptionError(
                f"task={cfg.task._target_} has no named tasks, each with its own loss; choose an experiment"
                " that has some, such as experiment=glyphs_multitask."
            )
        higher(family, cfg.metric)  # raises if the tasks have no such metric
        self.measures = {task: f"{task}/{next(iter(family.metrics[task]))}" for task in family.loss}
        self.higher = {measure: higher(family, measure) for measure in self.measures.values()}
        self.search = Search(cfg)
        self.passed_on = [text for text in overrides if _name(text) not in FOREIGN]
        self.chosen: dict[str, dict[str, Any]] = {}  # for each row
        self.composed: dict[tuple[str, ...], DictConfig] = {}  # earlier compositions

    def data(self) -> dict[str, Any]:
        """The data protocol of the tasks, and the number of training examples of each task."""
        source = self.sources(self.cfg)
        return {"protocol": getattr(source, "protocol", None), "train": sizes(source.split("train"))}

    def length(self, runs: Results) -> dict[str, Any]:
        """Steps of the longest training, and its epochs for each task, if they are known."""
        steps, config = max(run["steps"] for run in runs.values()), next(iter(runs.values()))["config"]
        train_tasks = self.sources(self.cfg, OmegaConf.create(config["train_task"])).split("train")
        return {"steps": steps, "epochs": epochs(train_tasks, steps, config["meta_batch"])}

    def check(self, rows: Mapping[str, DictConfig]) -> None:
        """Build the parts of these rows, with every combination of `tune`, without training.

        Raises:
            ValueError: a row cannot be built.
            ImportError: a row requires a package that is not installed.
        """
        points = self.search.examples()
        seeds = dict.fromkeys([*self.cfg.seeds, *self.cfg.tune_seeds])
        # Weights differ between seeds, not what can be built; so one point for every seed is enough.
        pairs = [
            *((values, self.cfg.seeds[0]) for values in points),
            *((points[0], seed) for seed in seeds),
        ]
        for (row, changes), (values, seed) in product(rows.items(), pairs):
            try:
                config = self.config(row, changes, values, seed)
                if config.teachers == SINGLE:  # their models are trained later
                    parts.part("distillation", config.distillation)
                    config.teachers = None
                parts.build(config, self.sources)
            except (ImportError, ValueError) as error:
                error_type = ImportError if isinstance(error, ImportError) else options.OptionError
                raise error_type(f"{row}, {label(values)}: {error}") from error

    def __call__(self, row: str, changes: Any) -> tuple[Results, dict[str, Any]]:
        """Train one row with every seed; return the results and the selected values of `tune`.

        Raises:
            FloatingPointError: training diverges with the selected values and some seed.
        """
        self.chosen[row] = tuned = self._tuned(row, changes)
        results = {seed: self._run(row, changes, tuned, seed) for seed in self.cfg.seeds}
        for seed, run in results.items():
            if "diverged" in run:
                raise FloatingPointError(f"{row}, {label(tuned)}, seed {seed}: {run['diverged']}")
        return results, tuned

    def _tuned(self, row: str, changes: Any) -> dict[str, Any]:
        """The best combination of `tune` on validation, over `tune_seeds`."""
        metric = changes.get("metric", self.cfg.metric)
        up = metric == "delta_m" or self.higher[metric]

        def score(values: dict[str, Any]) -> float:
            runs = (self._run(row, changes, values, seed) for seed in self.cfg.tune_seeds)
            return sum(quality(run, metric, higher_is_better=up) for run in runs)

        return self.search.best(score)

    def _run(self, row: str, changes: Any, values: dict[str, Any], seed: int) -> Run:
        config = self.config(row, changes, values, seed)
        if config.teachers == SINGLE:
            rows = {task: f"single_{task}" for task in self.measures}
            config.teachers = {
                task: str(self._place(row, self.chosen[row], seed)) for task, row in rows.items()
            }
        return run_cached(config, self._place(row, values, seed), self.sources)

    def config(self, row: str, changes: Any, values: dict[str, Any], seed: int) -> DictConfig:
        """The config of one training; its teachers may still be `SINGLE`."""
        config = with_changes(self.passed_on, changes, seed, self.composed)
        for key, value in values.items():
            OmegaConf.update(config, key, value)
        config.device = self.cfg.device
        return config

    def _place(self, row: str, values: dict[str, Any], seed: int) -> Path:
        return self.folder / row / label(values) / f"seed{seed}"


def single(task: str, measure: str) -> DictConfig:
    """The changes that train one task alone; its weights are selected by its own measure."""
    return OmegaConf.create({"task": {"tasks": [task]}, "metric": measure, "tasks_per_step": 1})


def mean_seconds(runs: Results) -> float:
    """Mean training seconds over the seeds."""
    return sum(run["seconds"] for run in runs.values()) / len(runs)


def values(runs: Results, split: str, measures: Iterable[str]) -> dict[int, dict[str, float]]:
    """The value of every measure, for each seed."""
    return {seed: {m: run[split][m]["mean"] for m in measures} for seed, run in runs.items()}


def _name(override: str) -> str:
    """The first part of the name that an override sets."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0]
