"""Which tasks should share a model: `metamtl analyse group experiment=tox21 models=3`.

Trains named tasks apart (one model each) and together (one model), measures on training data how they
relate while the joint model is trained (the look-ahead affinity of TAG, or another `measure=`), groups them
into at most `models=` groups, and trains one model per group. The control are random groupings with groups
of the same sizes: without it, "grouping helps" may only mean that a model has fewer tasks. Every model has
the same number of steps, the same examples of each task per step, and its own tuned learning rate, so that
a task is trained equally long in all rows. Rerun with the same output folder to resume.

Writes `group.json`, `group.md`, `group.png` (the matrix in the order of the groups), and a folder for every
training. More than 14 tasks are grouped by spectral clustering instead of the exact search. Needs the extra
`analysis`.

Examples:
  metamtl analyse group experiment=glyphs_multitask models=2
  metamtl analyse group experiment=tox21 models=3 measure=cosine 'seeds=[0,1,2,3,4]' control=5
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metamtl.analysis import Grouping, Relatedness, best_groups, spectral_groups
from metamtl.analysis.grouping import MOST_TASKS
from metamtl.analysis.result import axes
from metamtl.functional.atomic_write import atomic_write

from . import train
from .tables.group import markdown, statements
from .tables.report import environment, write_json, write_text
from .utils import options
from .utils.affinity import WITH_LR, Affinity
from .utils.command import command
from .utils.comparison import Comparison, estimate
from .utils.partitions import Partitions, Trained, random_partitions
from .utils.rows import Rows

PAIRS = (
    ("grouped", "together"),
    ("grouped", "apart"),
    ("together", "apart"),
    ("grouped", "random"),
)


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train all rows; write and return the table.

    Raises:
        ValueError: an invalid option, or a row that cannot be built; before the first training.
        ImportError: matplotlib is not installed, or a package that a row requires.
    """
    axes()  # raises before the first training if there is no matplotlib
    if cfg.device == "auto":
        cfg.device = train.device()
    options.check(cfg, "group")
    rows = Rows(cfg, overrides, folder)
    tasks = tuple(rows.measures)
    check(cfg, tasks)
    partitions = Partitions(rows)
    partitions.check()
    apart, together = tuple((task,) for task in tasks), (tasks,)
    trained = {"apart": partitions(apart)}
    partitions.set_reference(trained["apart"])
    trained["together"] = partitions(together)
    affinity = Affinity(cfg, rows, folder / "affinity")
    by_seed = [affinity(partitions.config(tasks, seed)) for seed in cfg.seeds]
    grouping = group(Relatedness.mean(by_seed), cfg.models, cfg.seed)
    trained["grouped"] = partitions(grouping.groups)
    others = random_partitions(tasks, grouping.groups, cfg.control, cfg.seed)
    if others:
        trained["random"] = partitions.mean([partitions(other) for other in others])
    table = {
        "experiment": {
            "overrides": overrides,
            **{name: _plain(cfg[name]) for name in ("models", "measure", "affinity", "control")},
            **{name: _plain(cfg[name]) for name in ("tune", "search", "tune_seeds")},
        },
        **environment(cfg.device),
        "data": rows.data(),
        "seeds": list(cfg.seeds),
        "interval": "95 %, Student t over seeds, paired by seed",
        "higher_is_better": rows.higher,
        **grouping.as_dict(),
        "groups_by_seed": [group(one, cfg.models, cfg.seed).as_dict()["groups"] for one in by_seed],
        "random_groups": [[list(part) for part in other] for other in others],
        **compare(trained, rows.higher),
    }
    with atomic_write(folder / "group.png") as partial:
        grouping.plot().savefig(partial, dpi=130, format="png")
    write_json(folder / "group.json", table)
    write_text(folder / "group.md", markdown(table))
    return table


def check(cfg: DictConfig, tasks: tuple[str, ...]) -> None:
    """Check the options that depend on the tasks.

    Raises:
        OptionError: there are fewer than two tasks or fewer tasks than models, or `affinity` cannot work.
        ImportError: the tasks need `spectral_groups`, and scikit-learn is not installed.
    """
    count, steps = len(tasks), cfg.affinity.steps or cfg.steps
    if count < 2:
        raise options.OptionError(f"the tasks are {list(tasks)}; a grouping needs at least two tasks.")
    if cfg.models > count:
        raise options.OptionError(
            f"models={cfg.models}, but there are {count} tasks ({', '.join(tasks)}); pass a number from 2"
            f" to {count}."
        )
    if steps is None:
        raise options.OptionError("steps=null: set affinity.steps=, over which the matrix is averaged.")
    if steps < cfg.affinity.every:
        raise options.OptionError(
            f"affinity.every={cfg.affinity.every} is more than the {steps} steps of the training, so that"
            " there is no matrix; lower it."
        )
    if cfg.affinity.lr is not None and cfg.measure not in WITH_LR:
        raise options.OptionError(
            f"affinity.lr={cfg.affinity.lr} has no effect on measure={cfg.measure}; omit it, or use one of"
            f" the measures {', '.join(WITH_LR)}."
        )
    if count > MOST_TASKS:
        spectral_groups(Relatedness(torch.arange(count**2).view(count, -1), tasks, cfg.measure), count)


def group(relatedness: Relatedness, models: int, seed: int) -> Grouping:
    """The grouping: the exact optimum for up to 14 tasks, else spectral clustering."""
    if len(relatedness.tasks) > MOST_TASKS:
        return spectral_groups(relatedness, models, seed)
    return best_groups(relatedness, models)


def compare(trained: Mapping[str, Trained], direction: Mapping[str, bool]) -> dict[str, Any]:
    """The rows of the table, their paired differences in `delta_m`, and the best one."""
    comparison = Comparison(direction, trained["apart"].values["test"])
    changes = {name: comparison.changes(row.values["test"]) for name, row in trained.items()}
    entries = [
        {
            "method": name,
            "validation": comparison.estimates(row.values["validation"]),
            **comparison(row.values["test"]),
            "by_seed": changes[name],
            **row.facts,
        }
        for name, row in trained.items()
    ]
    differences = {
        f"{one} - {other}": estimate([a - b for a, b in zip(changes[one], changes[other])])
        for one, other in PAIRS
        if other in trained
    }
    means = {name: sum(values) for name, values in changes.items() if name != "random"}
    return {"rows": entries, "differences": differences, "best": max(means, key=lambda name: means[name])}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@command("group", "analyse group")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    table = run(cfg, list(HydraConfig.get().overrides.task), folder)
    print((folder / "group.md").read_text(encoding="utf-8"))
    for statement in statements(table):
        print(f"- {statement}")
    print(f"table: {folder / 'group.json'}")


if __name__ == "__main__":
    raise SystemExit(main())
