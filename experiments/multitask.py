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

from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from . import train
from .tables.multitask import markdown
from .tables.report import environment, write_json, write_text
from .utils import options
from .utils.baselines import Baselines
from .utils.command import command
from .utils.comparison import Comparison, mean_of
from .utils.processes import from_first, is_first, process_group
from .utils.rows import Rows, mean_seconds, single, values

SPLITS = ("validation", "test")


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train all rows; write and return the table. A method that diverges is named below it.

    Raises:
        FloatingPointError: a single task diverges, with which the methods are compared.
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
    singles = {task: single(task, measure) for task, measure in names.items()}

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
                "seconds": sum(mean_seconds(runs) for runs in single_runs.values()),
            }
        ],
        "baselines": [],
        "diverged": {},
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
        try:
            runs, tuned = rows(method, joint(method, reference))
        except FloatingPointError as error:
            table["diverged"][method] = str(error)
        else:
            table["rows"].append(
                {
                    "method": method,
                    "validation": compare.estimates(values(runs, "validation", direction)),
                    **compare(values(runs, "test", direction), among_methods=True),
                    "tuned": tuned,
                    **rows.length(runs),
                    "parameters": runs[cfg.seeds[0]]["parameters"],
                    "seconds": mean_seconds(runs),
                }
            )
        if is_first():
            write_json(folder / "multitask.json", table)
            write_text(folder / "multitask.md", markdown(table))
    return table


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
