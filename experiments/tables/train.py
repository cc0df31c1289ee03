"""Markdown table of single trainings, each a `result.json` of `experiments.train`."""

from __future__ import annotations

from typing import Any

from . import published
from .compare import BATCHNORM, TRANSDUCTIVE
from .markdown import table_lines

KINDS = ("inductive", "transductive")  # of BatchNorm


def section(runs: dict[str, dict[str, Any]]) -> str:
    """A table with one row for each training, and notes on how it was measured."""
    head = ["run", "steps", "training s", "adaptation (strategy, steps)", "training tasks", "new tasks"]
    head += [f"new tasks, {kind} BatchNorm" for kind in KINDS]
    head += ["worst tenth, new", "published (difference)", "hardware"]
    rows = [_row(name, run) for name, run in runs.items()]
    intervals = {f"{run['test'][run['config']['metric']]['n']} tasks" for run in runs.values()}
    note = f"Intervals: 95 %, Student t over {', '.join(sorted(intervals))}; one seed."
    notes = [note, BATCHNORM, published.NOTE]
    if any(run["transductive"]["test"] for run in runs.values()):
        notes.append(TRANSDUCTIVE)
    return "\n".join(["### Single trainings", *table_lines(head, rows), "", *notes])


def _row(name: str, run: dict[str, Any]) -> list[str]:
    metric, hardware, adaptation = run["config"]["metric"], run["hardware"], run["adaptation"]
    recipe = run["config"]["recipe"]["_target_"].rpartition(".")[2]
    as_trained = (run["test_as_trained"] or run["test"])[metric]["mean"]
    by_batchnorm = run["test_by_batchnorm"]
    return [
        f"{name}{'*' if run['transductive']['test'] else ''} ({metric})",
        f"{run['steps']:,}",
        f"{run['seconds']:.0f}",
        f"{adaptation['strategy']}, {adaptation['steps']}",
        _cell(run["seen"][metric]),
        _cell(run["test"][metric]),
        *(_cell(by_batchnorm[kind][metric]) if by_batchnorm.get(kind) else "-" for kind in KINDS),
        f"{run['test'][metric]['worst_decile']:.4f}",
        published.cell(published.published(run["config"]["task"], recipe), as_trained),
        f"{hardware['device']}, {hardware['threads']} threads, torch {run['versions']['torch']}",
    ]


def _cell(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:.4f} ± {estimate['ci95']:.4f}"
