"""Tasks together against each by itself: `python -m experiments.multitask experiment=multimnist`.

Trains one model for each task alone, then one for all tasks by each method, from the same seeds with the
same steps. Learning rates of every row, the single tasks' too, are chosen on validation by seeds of their
own; so are the weights of every run, those of a method by `delta_m` against the single tasks' validation.
Writes `multitask.json`, `multitask.md`, and the folder of every run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from metamtl import Estimate, delta_m

from . import train
from .measure import higher
from .report import environment, signed, write_json, write_text

OWN = ("methods=", "run=", "seeds=", "tune=", "tune_seeds=", "seed=")
GROUPS = ("net", "recipe", "optimizer")  # of configs: a method may name one of each
Results = dict[int, dict[str, Any]]  # by seed


class Rows:
    """Trains the rows of one table; a run whose result is there already is read instead."""

    def __init__(self, cfg: DictConfig, overrides: list[str], folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self.passed_on = [text for text in overrides if not text.lstrip("+").startswith(OWN)]

    def __call__(self, row: str, changes: Any) -> tuple[Results, dict[str, Any]]:
        """The results of one row for every seed, and the learning rates (or what else) chosen for it."""
        tuned = self._tuned(row, changes)
        merged = OmegaConf.merge(changes, _nested(tuned))
        return {seed: self._run(row, f"seed{seed}", merged, seed) for seed in self.cfg.seeds}, tuned

    def _tuned(self, row: str, changes: Any) -> dict[str, Any]:
        """The best of all combinations of `tune` on validation, over the seeds for it."""
        names = list(self.cfg.tune)
        combinations = [dict(zip(names, values)) for values in product(*self.cfg.tune.values())]
        if len(combinations) == 1:
            return combinations[0]
        scores = []
        for values in combinations:
            label = "tune_" + "_".join(
                f"{name.rpartition('.')[2]}{value}" for name, value in values.items()
            )
            merged = OmegaConf.merge(changes, _nested(values))
            metric = merged.get("metric", self.cfg.metric)
            found = [
                self._run(row, f"{label}_seed{seed}", merged, seed)["validation"][metric]["mean"]
                for seed in self.cfg.tune_seeds
            ]
            better = 1 if metric == "delta_m" or self._higher[metric] else -1
            scores.append(better * sum(found) / len(found))
        return combinations[max(range(len(scores)), key=scores.__getitem__)]

    def _run(self, row: str, label: str, changes: Any, seed: int) -> dict[str, Any]:
        folder = self.folder / row / label
        groups = {name: changes[name] for name in GROUPS if isinstance(changes.get(name), str)}
        chosen = [f"{group}={name}" for group, name in groups.items()]
        one = compose("train", [*self.passed_on, *chosen, f"seed={seed}"])
        OmegaConf.set_struct(one, False)  # methods may set what no config file has
        one.merge_with(
            {name: value for name, value in changes.items_ex(resolve=False) if name not in groups}
        )
        one.device = self.cfg.device
        known = folder / "result.json"
        if known.is_file():
            found: dict[str, Any] = json.loads(known.read_text(encoding="utf-8"))
            if found["config"] == OmegaConf.to_container(one, resolve=False):
                return found
        return train.run(one, folder)

    def measures(self) -> dict[str, str]:
        """The measure of each task, the first of its metrics: `{task: "task/metric"}`."""
        family = instantiate(self.cfg.task).split("validation")
        names = {task: f"{task}/{next(iter(family.metrics[task]))}" for task in family.loss}
        self._higher = {name: higher(family, name) for name in names.values()}
        return names

    def higher(self) -> dict[str, bool]:
        """Whether more is better, by measure."""
        return self._higher


def run(cfg: DictConfig, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train all rows; write and return the table."""
    if cfg.device == "auto":
        cfg.device = train.device()
    if unknown := sorted(set(cfg.run) - set(cfg.methods)):
        raise ValueError(f"run names {unknown}; the methods are {', '.join(cfg.methods)}.")
    rows = Rows(cfg, overrides, folder)
    names = rows.measures()
    direction = rows.higher()
    alone, rates = {}, {}
    for task, measure in names.items():
        changes = OmegaConf.create({"task": {"tasks": [task]}, "metric": measure, "tasks_per_step": 1})
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
    for method in cfg.run:
        selects = OmegaConf.create({"metric": "delta_m", "reference": reference})
        changes = OmegaConf.merge(selects, cfg.methods[method])
        found, tuned = rows(method, changes)
        tests = {seed: {m: found[seed]["test"][m]["mean"] for m in direction} for seed in cfg.seeds}
        # Each seed against the single tasks of that seed, so that the interval has the noise of both.
        by_seed = [
            delta_m(tests[seed], baseline, direction) - delta_m(of_alone("test", seed), baseline, direction)
            for seed in cfg.seeds
        ]
        changes_by_seed[method] = by_seed
        first = changes_by_seed[cfg.run[0]]
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
                    m: sign([(tests[s][m] - of_alone("test", s)[m]) * (1 if up else -1) for s in cfg.seeds])
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


def sign(differences: list[float]) -> str:
    """`+` or `-` where the mean's interval leaves out zero, else `=`: within the noise of the seeds."""
    found = Estimate.of(torch.tensor(differences, dtype=torch.float64))
    if not abs(found.mean) > found.ci95:  # nor where one seed gives no interval
        return "="
    return "+" if found.mean > 0 else "-"


def markdown(table: dict[str, Any]) -> str:
    """The table in Markdown: every measure, `delta_m`, the signs, and what is noise."""
    measures = list(table["higher_is_better"])
    heads = [f"{m} {'↑' if up else '↓'}" for m, up in table["higher_is_better"].items()]
    columns = ["method", *heads, "delta_m, %", f"against {table['rows'][1]['method']}"]
    lines = [
        f"| {' | '.join([*columns, 'signs', 'parameters', 'training s'])} |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for row in table["rows"]:
        cells = [signed(row["test"][m], digits=4, plus=False) for m in measures]
        if "delta_m" in row:
            cells += [signed(row["delta_m"]), _verdict(row["against_first"])]
            cells.append(" ".join(row["signs"].values()))
        else:
            cells += ["0", "", ""]
        lines.append(
            f"| {row['method']} | {' | '.join(cells)} | {row['parameters']:,} | {row['seconds']:.0f} |"
        )
    hardware = table["hardware"]
    lines += [
        "",
        f"Test set, used once. Seeds {table['seeds']}; intervals: {table['interval']}; delta_m: mean"
        " relative change against the single tasks, in percent; signs: better (+), worse (-) or within the"
        f" noise of the seeds (=), by task. {hardware['device']}, {hardware['threads']} threads; torch"
        f" {table['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def _verdict(found: Mapping[str, float | None]) -> str:
    """The difference to the first method, and whether the seeds tell it from none."""
    if found["mean"] == 0:
        return ""
    ci95 = found["ci95"]
    known = ci95 is not None and math.isfinite(ci95) and abs(found["mean"] or 0.0) > ci95
    return signed(found) + ("" if known else ", within the noise")


def _estimate(values: list[float]) -> dict[str, float]:
    found = Estimate.of(torch.tensor(values, dtype=torch.float64))
    return {"mean": found.mean, "ci95": found.ci95}


def _mean(of_seeds: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in of_seeds) / len(of_seeds) for name in of_seeds[0]}


def _seconds(found: Results) -> float:
    return sum(result["seconds"] for result in found.values()) / len(found)


def _nested(values: Mapping[str, Any]) -> DictConfig:
    """`{"optimizer.lr": 1e-3}` as a config of that shape."""
    nested = OmegaConf.create({})
    for name, value in values.items():
        OmegaConf.update(nested, name, value)
    return nested


@hydra.main(version_base=None, config_path=train.CONF, config_name="multitask")
def main(cfg: DictConfig) -> None:
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    run(cfg, list(config.overrides.task), folder)
    print((folder / "multitask.md").read_text(encoding="utf-8"))
    print(f"table: {folder / 'multitask.json'}")


if __name__ == "__main__":
    main()
