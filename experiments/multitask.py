"""Multi-task methods against single-task models: `python -m experiments.multitask experiment=multimnist`.

Trains one model per task, then one model for all tasks with each method, with the same seeds and numbers of
steps. The learning rates of every row, including single tasks, are selected on validation with separate
seeds. The weights of every run are also selected on validation; those of a method by `delta_m` relative to
the single tasks. The rows of `baselines` are estimators of scikit-learn on the same inputs. Writes
`multitask.json`, `multitask.md`, and a folder for every run.

Examples:
  metamtl multitask experiment=multimnist 'run=[equal,uncertainty,upgrad]' 'seeds=[0,1,2,3,4]'
  metamtl multitask experiment=adult search.method=random search.trials=8
    ~tune '+tune={optimizer.lr:{low:1e-4,high:1e-2,log:true}}'
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from . import train
from .tables.multitask import markdown
from .tables.report import environment, write_json, write_text
from .utils import options, parts
from .utils.baselines import Baselines
from .utils.command import command
from .utils.comparison import Comparison, mean_of
from .utils.configs import with_changes
from .utils.measure import epochs, higher, sizes
from .utils.processes import from_first, is_first, process_group
from .utils.runs import Run, quality, run_cached
from .utils.search import Search, label

OWN = {"methods", "baselines", "run", "seeds", "tune", "tune_seeds", "search", "seed"}
SINGLE = "single_tasks"  # as teachers: the single-task models of the same seed
SPLITS = ("validation", "test")
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
        higher(family, cfg.metric)  # raises if the tasks have no such metric
        self.measures = {task: f"{task}/{next(iter(family.metrics[task]))}" for task in family.loss}
        self.higher = {measure: higher(family, measure) for measure in self.measures.values()}
        self.search = Search(cfg)
        self.passed_on = [text for text in overrides if _name(text).partition(".")[0] not in OWN]
        self.chosen: dict[str, dict[str, Any]] = {}  # for each row

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
                config = self._config(row, changes, values, seed)
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
        config = self._config(row, changes, values, seed)
        if config.teachers == SINGLE:
            rows = {task: f"single_{task}" for task in self.measures}
            config.teachers = {
                task: str(self._place(row, self.chosen[row], seed)) for task, row in rows.items()
            }
        return run_cached(config, self._place(row, values, seed), self.sources)

    def _config(self, row: str, changes: Any, values: dict[str, Any], seed: int) -> DictConfig:
        """The config of one training; its teachers may still be `SINGLE`."""
        config = with_changes(self.passed_on, changes, seed)
        for key, value in values.items():
            OmegaConf.update(config, key, value)
        config.device = self.cfg.device
        return config

    def _place(self, row: str, values: dict[str, Any], seed: int) -> Path:
        return self.folder / row / label(values) / f"seed{seed}"


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train all rows; write and return the table.

    Raises:
        ValueError: an invalid option, or a row that cannot be built; before the first training.
        ImportError: a row requires a package that is not installed; before the first training.
    """
    if cfg.device == "auto":
        cfg.device = train.device()
    options.check(cfg, "multitask")
    methods = list(cfg.run)
    options.check_names("run", methods, cfg.methods)
    for method, changes in cfg.methods.items():
        known = {name.partition(".")[0] for name in options.TRAINING}
        options.check_names(f"methods.{method}", changes, sorted(known))
    rows = Rows(cfg, overrides, folder)
    names, direction = rows.measures, rows.higher
    singles = {
        task: OmegaConf.create({"task": {"tasks": [task]}, "metric": measure, "tasks_per_step": 1})
        for task, measure in names.items()
    }

    def joint(method: str, reference: dict[str, float]) -> DictConfig:
        selects = OmegaConf.create({"metric": "delta_m", "reference": reference})
        return cast(DictConfig, OmegaConf.merge(selects, cfg.methods[method]))

    any_reference = dict.fromkeys(names.values(), 1.0)  # the actual values are known after the single tasks
    rows.check(
        {f"single_{task}": changes for task, changes in singles.items()}
        | {method: joint(method, any_reference) for method in methods}
    )
    baselines = Baselines(cfg, rows.sources) if cfg.baselines else None
    if baselines is not None:
        baselines.check()
    single_runs, rates = {}, {}
    for task, changes in singles.items():
        single_runs[task], rates[task] = rows(f"single_{task}", changes)
    alone = {
        split: {
            seed: {m: single_runs[task][seed][split][m]["mean"] for task, m in names.items()}
            for seed in cfg.seeds
        }
        for split in SPLITS
    }
    reference = mean_of(list(alone["validation"].values()))
    compare = Comparison(direction, alone["test"])
    all_runs = [run for runs in single_runs.values() for run in runs.values()]
    table: dict[str, Any] = {
        "experiment": {
            "overrides": [text for text in overrides if not text.startswith(("run=", "seeds="))],
            "tune": OmegaConf.to_container(cfg.tune) if cfg.tune else {},
            "search": OmegaConf.to_container(cfg.search),
            "tune_seeds": list(cfg.tune_seeds),
        },
        **environment(cfg.device),
        "data": rows.data(),
        "seeds": list(cfg.seeds),
        "interval": "95 %, Student t over seeds",
        "higher_is_better": direction,
        "rows": [
            {
                "method": "single tasks",
                **{split: compare.estimates(alone[split]) for split in SPLITS},
                "mean": compare.mean(alone["test"]),
                "tuned": rates,
                **rows.length(dict(enumerate(all_runs))),
                "parameters": sum(runs[cfg.seeds[0]]["parameters"] for runs in single_runs.values()),
                "seconds": sum(_seconds(runs) for runs in single_runs.values()),
            }
        ],
        "baselines": [],
    }
    for name in cfg.baselines or ():
        assert baselines is not None
        row = baselines(name, names)
        table["baselines"].append(
            {
                "method": name,
                "validation": compare.estimates(row["validation"]),
                **compare(row["test"]),
                "tuned": row["tuned"],
                "seconds": row["seconds"],
            }
        )
    for method in methods:
        runs, tuned = rows(method, joint(method, reference))
        values = {
            split: {seed: {m: runs[seed][split][m]["mean"] for m in direction} for seed in cfg.seeds}
            for split in SPLITS
        }
        table["rows"].append(
            {
                "method": method,
                "validation": compare.estimates(values["validation"]),
                **compare(values["test"], among_methods=True),
                "tuned": tuned,
                **rows.length(runs),
                "parameters": runs[cfg.seeds[0]]["parameters"],
                "seconds": _seconds(runs),
            }
        )
        if is_first():
            write_json(folder / "multitask.json", table)
            write_text(folder / "multitask.md", markdown(table))
    return table


def _name(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _seconds(found: Results) -> float:
    return sum(result["seconds"] for result in found.values()) / len(found)


@command("multitask")
def main(cfg: DictConfig) -> None:
    with process_group():
        folder = from_first(Path(HydraConfig.get().runtime.output_dir))
        run(cfg, list(HydraConfig.get().overrides.task), folder)
        if is_first():
            print((folder / "multitask.md").read_text(encoding="utf-8"))
            print(f"table: {folder / 'multitask.json'}")


if __name__ == "__main__":
    raise SystemExit(main())
