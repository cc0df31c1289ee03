"""One more task, from few examples, with the encoder of a finished training.

`python -m experiments.new_task multitask=<folder>` takes what `experiments.multitask experiment=text_trio`
wrote. Each of its encoders, and an untrained one, learns the 15 intents of a CLINC150 domain from 5
sentences each; how (which adapter, how many steps) is chosen on the validation domains, and the test
domains are used once. Writes `new_task.json` and `new_task.md`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from metamtl import Estimate, Recipe, engines, load, nets

from . import train
from .tables.multitask import folder_of
from .tables.report import environment, signed, write_json, write_text
from .utils import options, parts
from .utils.measure import choose, measure


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Adapt every encoder to the same tasks; write and return the table."""
    options.check_counts(cfg, ("ways", "shots", "select.tasks", "test.tasks"))
    options.check_seeds(cfg)
    names = options.names(cfg, "rows")
    ways = {name: Recipe(parts.part(f"adapt.{name}", adapter)) for name, adapter in cfg.adapt.items()}
    runs = _runs(cfg, names)
    engine = engines.Auto(steps=len(runs) * len(cfg.seeds))  # evaluations of one kind: one per encoder
    rows = []
    for row, folders in runs.items():
        found = [_one(cfg, ways, run, row, engine) for run in folders]
        accuracies = Estimate.of(torch.tensor([one["accuracy"] for one in found], dtype=torch.float64))
        worst = [one["worst_decile"] for one in found]
        rows.append(
            {
                "encoder": row,
                "accuracy": {"mean": accuracies.mean, "ci95": accuracies.ci95},
                "worst_decile": sum(worst) / len(worst),
                "adaptation": [one["adaptation"] for one in found],
            }
        )
    table = {
        **environment("cpu"),
        "seeds": list(cfg.seeds),
        "interval": "95 %, Student t over the encoders' seeds",
        "tasks": cfg.test.tasks,
        "ways": cfg.ways,
        "shots": cfg.shots,
        "rows": rows,
    }
    write_json(folder / "new_task.json", table)
    write_text(folder / "new_task.md", markdown(table))
    return table


def _runs(cfg: DictConfig, names: list[str]) -> dict[str, list[Path]]:
    """The folders of the trained encoders of every row, one per seed.

    Raises:
        FileNotFoundError: the table, or a run, is missing.
    """
    base = Path(cfg.multitask)
    table = base / "multitask.json"
    if not table.is_file():
        raise FileNotFoundError(
            f"multitask={base} has no multitask.json; pass the folder of a finished experiments.multitask."
        )
    trained = json.loads(table.read_text(encoding="utf-8"))
    runs = {row: [base / folder_of(trained, row) / f"seed{seed}" for seed in cfg.seeds] for row in names}
    missing = [
        str(run) for folders in runs.values() for run in folders if not (run / "result.json").is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"no result.json in {', '.join(missing)}; run experiments.multitask with these seeds, or pass"
            f" seeds={trained['seeds']}."
        )
    return {"untrained": runs[names[0]], **runs}


def _one(
    cfg: DictConfig, ways: dict[str, Recipe], run: Path, row: str, engine: engines.Engine
) -> dict[str, Any]:
    """The test of one encoder."""
    model, _, source, _ = load(run, trained=row != "untrained")
    shared = model.bottom if isinstance(model, nets.Hierarchical) else model.body
    classifier = nets.TextClassifier(shared, cfg.ways)
    task = {"ways": cfg.ways, "shots": cfg.shots, "vocabulary": source.vocabulary}
    family = instantiate(cfg.task, **task)
    validation, test = family.split("validation"), family.split("test")
    episodes = validation.sample(cfg.select.tasks, train.stream(0, train.SELECT))
    chosen = choose(classifier, ways, validation, episodes, "accuracy", engine=engine)
    new = test.sample(cfg.test.tasks, train.stream(0, train.TEST))
    measured, _ = measure(classifier, ways[chosen.way], chosen.stage, test, new, engine=engine)
    return {
        "accuracy": measured["accuracy"].mean,
        "worst_decile": measured["accuracy"].worst_decile,
        "adaptation": f"{chosen.way}, {chosen.stage}",
    }


def markdown(table: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        f"| encoder | accuracy, {table['ways']} intents from {table['shots']} sentences each | worst tenth"
        " | adapts (way, steps) |",
        "|---|---|---|---|",
    ]
    for row in table["rows"]:
        percent = {name: 100 * value for name, value in row["accuracy"].items()}
        cells = [signed(percent, digits=1, plus=False), f"{100 * row['worst_decile']:.1f}"]
        cells.append("; ".join(sorted(set(row["adaptation"]))))
        lines.append(f"| {row['encoder']} | {' | '.join(cells)} |")
    hardware = table["hardware"]
    lines += [
        "",
        f"{table['tasks']} tasks of domains met neither in training nor in validation, the same for every"
        f" encoder; seeds {table['seeds']}; intervals: {table['interval']}. {hardware['device']},"
        f" {hardware['threads']} threads; torch {table['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


@hydra.main(version_base=None, config_path=train.CONF, config_name="new_task")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    run(cfg, folder)
    print((folder / "new_task.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
