"""Few-shot transfer of trained encoders to a new task.

`python -m experiments.new_task multitask=<folder>` reads the output folder of `experiments.multitask
experiment=text_trio`. Each of its encoders, and an untrained one, learns the 15 intents of a CLINC150
domain from 5 sentences per intent. The adapter and the number of steps are selected on the validation
domains; the test domains are used once. Writes `new_task.json` and `new_task.md`.

Examples:
  metamtl new_task multitask=outputs/multitask/text
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from metamtl import Estimate, Recipe, engines, load, nets

from .tables.multitask import folder_of
from .tables.new_task import markdown
from .tables.report import environment, read_json, write_json, write_text
from .utils import options, parts
from .utils.command import command
from .utils.measure import choose, measure
from .utils.streams import SELECT, TEST, stream


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Adapt every encoder to the same tasks; write and return the table."""
    options.check(cfg, "new_task")
    names = list(cfg.rows)
    strategies = {name: Recipe(parts.part(f"adapt.{name}", adapter)) for name, adapter in cfg.adapt.items()}
    runs = _runs(cfg, names)
    engine = engines.Auto(steps=len(runs) * len(cfg.seeds))  # each kind of evaluation runs once per encoder
    rows = []
    for row, folders in runs.items():
        results = [_one(cfg, strategies, run, row, engine) for run in folders]
        accuracies = Estimate.of(
            torch.tensor([result["accuracy"] for result in results], dtype=torch.float64)
        )
        worst = [result["worst_decile"] for result in results]
        rows.append(
            {
                "encoder": row,
                "accuracy": {"mean": accuracies.mean, "ci95": accuracies.ci95},
                "worst_decile": sum(worst) / len(worst),
                "adaptation": [result["adaptation"] for result in results],
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
    """Folders of the trained encoders of every row, one per seed.

    Raises:
        FileNotFoundError: the table, or a run, is missing.
    """
    base = Path(cfg.multitask)
    table = base / "multitask.json"
    if not table.is_file():
        raise FileNotFoundError(
            f"multitask={base} has no multitask.json; pass the folder of a finished experiments.multitask."
        )
    content = read_json(table, "rows", "seeds")
    runs = {row: [base / folder_of(content, row) / f"seed{seed}" for seed in cfg.seeds] for row in names}
    missing = [
        str(run) for folders in runs.values() for run in folders if not (run / "result.json").is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"no result.json in {', '.join(missing)}; run experiments.multitask with these seeds, or pass"
            f" seeds={content['seeds']}."
        )
    return {"untrained": runs[names[0]], **runs}


def _one(
    cfg: DictConfig, strategies: dict[str, Recipe], run: Path, row: str, engine: engines.Engine
) -> dict[str, Any]:
    """Select the adaptation of one encoder on validation domains and evaluate it on test domains."""
    model, _, source, _ = load(run, trained=row != "untrained")
    shared = model.bottom if isinstance(model, nets.Hierarchical) else model.body
    classifier = nets.TextClassifier(shared, cfg.ways)
    task = {"ways": cfg.ways, "shots": cfg.shots, "vocabulary": source.vocabulary}
    family = instantiate(cfg.task, **task)
    validation, test = family.split("validation"), family.split("test")
    episodes = validation.sample(cfg.select.tasks, stream(0, SELECT))
    choice = choose(classifier, strategies, validation, episodes, "accuracy", engine=engine)
    new = test.sample(cfg.test.tasks, stream(0, TEST))
    metrics, _ = measure(classifier, strategies[choice.strategy], choice.stage, test, new, engine=engine)
    return {
        "accuracy": metrics["accuracy"].mean,
        "worst_decile": metrics["accuracy"].worst_decile,
        "adaptation": f"{choice.strategy}, {choice.stage}",
    }


@command("new_task")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    run(cfg, folder)
    print((folder / "new_task.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
