"""Analyze a finished training on its validation tasks: `python -m experiments.analyse run=outputs/first`.

How it adapts, which tasks help each other, in which layers they conflict, whether a step does what its
gradient promises, indicators of generalization, the precision that gradients need, and what to try next.
Every value is a mean over batches of tasks with its 95 % interval. Writes `analysis.json` and
`report.html`, one page with all figures, into its output folder. Needs the extra `analysis`.

Examples:
  metamtl analyse run=outputs/first
  metamtl analyse run=outputs/first batches=10 tasks=16 hydra.run.dir=outputs/first_analysis
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metamtl import Estimate, load
from metamtl.adapters import Gradient
from metamtl.analysis.result import axes
from metamtl.loading import Run

from .tables.html_report import Picture, Section, Statement, figure_style, page
from .tables.report import environment, write_json, write_text
from .utils import options
from .utils.analyses import Sample, Subject, analyze
from .utils.command import command
from .utils.sections import Context, sections
from .utils.streams import stream

EXAMINED, REFERENCE = 5, 6  # streams of random numbers that a training does not use
NUM_TASKS = 8
INTERVAL = "95 %, Student t over batches of tasks"


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Analyze the training in `cfg.run`; write into `folder` and return the content of `analysis.json`.

    Raises:
        OptionError: `cfg.run` has no finished training, or options do not fit it.
        ImportError: matplotlib, or a package that the training needs, is not installed.
    """
    options.check(cfg, "analyse")
    with figure_style():
        try:
            trained, start = load(cfg.run), load(cfg.run, trained=False).model
        except (FileNotFoundError, ValueError) as error:
            raise options.OptionError(f"run={cfg.run}: {error}") from error
        config = trained.result["config"]
        for part in (trained.model, trained.recipe, start):
            part.to(config.get("device", "cpu"))
        lr = learning_rate(cfg, config)
        split, names, samples = draw(cfg, trained, start, lr)
        results, omitted = analyze(samples)
        context = describe(config, trained, names is not None, lr)
        parts = [
            training(trained.result),
            *sections(results, omitted, context),
        ]
        text = page(
            f"Analysis of {Path(cfg.run).name}", lead(cfg, split, names), parts, footer(trained.result)
        )
    content = {
        **environment(config.get("device", "cpu")),
        "run": cfg.run,
        "split": split,
        "tasks": names,
        "batches": cfg.batches,
        "tasks_per_batch": cfg.tasks,
        "lr": lr,
        "seed": cfg.seed,
        "interval": INTERVAL,
        "sections": [part.as_dict() for part in parts],
        "results": {name: [result.as_dict() for result in each] for name, each in results.items()},
        "omitted": omitted,
    }
    write_json(folder / "analysis.json", content)
    write_text(folder / "report.html", text)
    return content


def describe(config: Mapping[str, Any], trained: Run, named: bool, lr: float) -> Context:
    """The properties of the training that the sections use."""
    optimizer = config["optimizer"]
    params = [name for name, param in trained.model.named_parameters() if param.requires_grad]
    return Context(
        named=named,
        lr=lr,
        plain=optimizer["_target_"] == "torch.optim.SGD" and not optimizer.get("momentum"),
        inner=any(isinstance(part, Gradient) for part in trained.recipe.adapter.modules()),
        layers=tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in params)),
    )


def learning_rate(cfg: DictConfig, config: Mapping[str, Any]) -> float:
    """`cfg.lr`, or that of the optimizer of the training.

    Raises:
        OptionError: neither is a positive number.
    """
    lr = config["optimizer"].get("lr") if cfg.lr is None else cfg.lr
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not lr > 0:
        raise options.OptionError(
            f"the optimizer of run={cfg.run} has lr={lr}; set lr=, that of the steps to analyze."
        )
    return float(lr)


def draw(
    cfg: DictConfig, trained: Run, start: torch.nn.Module, lr: float
) -> tuple[str, list[str] | None, Iterator[Sample]]:
    """The split that is analyzed, the names of its tasks, and its batches. Sets `cfg.tasks` if it is null.

    The split is validation, or train if the adapter knows only the training tasks.
    """
    train_tasks = trained.source.split("train")
    eval_tasks, split = trained.source.split("validation"), "validation"
    named = isinstance(eval_tasks.loss, Mapping)
    if cfg.tasks is None:
        cfg.tasks = trained.result["config"]["meta_batch"] if named else NUM_TASKS
    first = _sample(cfg, eval_tasks, EXAMINED, 0)
    if not named:
        try:
            trained.recipe.adapter.check(trained.model, first.task)
        except ValueError:
            eval_tasks, split = train_tasks, "train"
    names = list(first) if named else None
    subject = Subject(
        trained.model,
        trained.recipe,
        eval_tasks.loss,
        {name: param.detach() for name, param in start.named_parameters() if param.requires_grad},
        lr,
    )

    def samples() -> Iterator[Sample]:
        for index in range(cfg.batches):
            episodes = _sample(cfg, eval_tasks, EXAMINED, index)
            if named and list(episodes) != names:
                raise options.OptionError(
                    f"tasks={cfg.tasks}: some tasks have no label in a batch of so few examples, so that"
                    f" batches differ ({', '.join(names or ())}; {', '.join(episodes)}); raise tasks=."
                )
            reference = _sample(cfg, train_tasks, REFERENCE, index) if split == "validation" else None
            yield Sample(subject, episodes, reference)

    return split, names, samples()


def _sample(cfg: DictConfig, split: Any, kind: int, index: int) -> Any:
    try:
        return split.sample(cfg.tasks, stream(cfg.seed, kind, index))
    except ValueError as error:
        raise options.OptionError(f"tasks={cfg.tasks}: {error}") from error


def lead(cfg: DictConfig, split: str, names: list[str] | None) -> str:
    """A paragraph on the samples and intervals of the report."""
    size = f"{cfg.tasks} tasks" if names is None else f"{cfg.tasks} examples of {', '.join(names)}"
    text = (
        f"Values are means over {cfg.batches} batches of {size} ({split}), with 95 % intervals (Student t)."
    )
    if split == "train":
        text += " The adapter knows only the training tasks, so these are analyzed."
    if names is not None:
        text += " Batches of a small validation set overlap, which makes the intervals too narrow."
    return text


def footer(result: Mapping[str, Any]) -> str:
    """The versions and hardware of the training."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"The training: {versions}; {result['hardware']['device']}."


def training(result: Mapping[str, Any]) -> Section:
    """The section on the training: its parts, and its results with the intervals of `result.json`."""
    config = result["config"]
    parts = {part: config[part]["_target_"] for part in ("recipe", "net", "task", "optimizer")}
    section = Section(
        "What was trained", [Statement(f"{part}: {target}") for part, target in parts.items()]
    )
    section.statements += [
        Statement(f"{result['parameters']} parameters, {result['steps']} steps, seed {config['seed']}"),
        Statement(f"ended by {result['stopped_by']}"),
    ]
    for name in ("validation", "test"):
        for metric, values in result[name].items():
            section.statements.append(Statement(f"{name} {metric}", _estimate(values)))
    section.notes.append(f"The intervals of these results: {result['interval']}.")
    history = result["history"]
    if history:
        ax = axes()
        errors = [math.nan if entry["ci95"] is None else entry["ci95"] for entry in history]
        means = [entry["validation"] for entry in history]
        ax.errorbar([entry["step"] for entry in history], means, yerr=errors, marker="o", capsize=3)
        ax.set_xlabel("step")
        ax.set_ylabel(f"validation {config['metric']}")
        section.pictures.append(Picture("Validations during the training", ax.figure))
    return section


def _estimate(values: Mapping[str, Any]) -> Estimate:
    ci95 = math.nan if values["ci95"] is None else values["ci95"]
    return Estimate(values["mean"], ci95, values["n"], values["worst_decile"], torch.empty(0))


@command("analyse")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    content = run(cfg, folder)
    for statement in content["sections"][-1]["statements"]:
        print(f"- {statement['text']}")
    for name, reason in content["omitted"].items():
        print(f"left out, {name}: {reason}")
    print(folder / "report.html")


if __name__ == "__main__":
    raise SystemExit(main())
