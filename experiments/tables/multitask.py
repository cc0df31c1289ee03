"""Markdown tables for a `multitask.json` of `experiments.multitask`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.search import label
from .markdown import diverged, table_lines
from .report import sign, signed

FEW = 5  # maximum number of measures shown as columns


def folder_of(table: dict[str, Any], row: str) -> Path:
    """Relative folder of the runs of a method, or of `single_<task>`, in the folder of the table.

    Raises:
        ValueError: the table has no such row.
    """
    single, *methods = table["rows"]
    tuned = {f"single_{task}": values for task, values in single["tuned"].items()}
    tuned |= {method["method"]: method["tuned"] for method in methods}
    if row not in tuned:
        raise ValueError(f"the table has no row {row!r}; it has {', '.join(tuned)}.")
    return Path(row) / label(tuned[row])


def section(name: str, kept: list[str], table: dict[str, Any]) -> str:
    """Section of the results page; `kept` are the overrides that are part of the experiment."""
    methods = [*(row["method"] for row in table["rows"][1:]), *table.get("diverged", ())]
    lists = [f"run=[{','.join(methods)}]", f"seeds=[{','.join(map(str, table['seeds']))}]"]
    command = shlex.join(["python", "-m", "experiments.multitask", *kept, *lists])
    measures = list(table["higher_is_better"])
    link = f"[All numbers, including validation](../experiments/results/{name}/multitask.md)."
    return "\n".join(
        [
            *(f"### {name}", "```bash", command, "```", ""),
            *_test(table, measures if len(measures) <= FEW else []),
            *("", f"{_footer(table)} {link}"),
        ]
    )


def markdown(table: dict[str, Any]) -> str:
    """Complete table in Markdown: all measures on test and validation, `delta_m`, and the signs."""
    measures = list(table["higher_is_better"])
    head, validation = ["on validation", *heads(table, measures), "chosen on it"], []
    for row in _rows(table):
        per_task = all(isinstance(values, Mapping) for values in row["tuned"].values()) and row["tuned"]
        tuned = {k: label(v) for k, v in row["tuned"].items()} if per_task else row["tuned"]
        values = [signed(row["validation"][m], digits=4, plus=False) for m in measures]
        validation.append([row["method"], *values, label(tuned)])
    lines = [*_test(table, measures), "", *table_lines(head, validation), "", _footer(table)]
    return "\n".join(lines) + "\n"


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Baselines, single tasks, methods."""
    return [*table.get("baselines", ()), *table["rows"]]


def heads(table: dict[str, Any], measures: list[str]) -> list[str]:
    return [f"{m} {arrow(table, m)}" for m in measures]


def arrow(table: dict[str, Any], measure: str) -> str:
    return "↑" if table["higher_is_better"][measure] else "↓"


def _test(table: dict[str, Any], measures: list[str]) -> list[str]:
    """Table with one row per method and one column per measure."""
    rows, means = _rows(table), []
    metrics = {m.rpartition("/")[2]: arrow(table, m) for m in table["higher_is_better"]}
    if len(table["higher_is_better"]) > FEW and len(metrics) == 1:
        means = [f"mean {metric} {arrow}" for metric, arrow in metrics.items()]
    with_steps = any("steps" in row for row in rows)  # older results do not have them
    columns = ["method", *means, *heads(table, measures), "delta_m, %"]
    columns += [*(f"against {row['method']}" for row in table["rows"][1:2]), "signs"]
    columns += [*(["steps (epochs)"] if with_steps else []), "parameters", "training s"]
    lines = []
    for row in rows:
        values = [mean(row) for _ in means] + [row["test"][m] for m in measures]
        cells = [signed(each, digits=4, plus=False) for each in values]
        cells.append(signed(row["delta_m"]) if "delta_m" in row else "0")
        if len(table["rows"]) > 1:
            cells.append(_verdict(row["against_first"]) if "against_first" in row else "")
        cells.append(" ".join(row["signs"].values()) if "signs" in row else "")
        if with_steps:
            cells.append(steps(row) if "steps" in row else "")
        cells.append(f"{row['parameters']:,}" if "parameters" in row else "")
        lines.append([row["method"], *cells, f"{row['seconds']:.0f}"])
    return [*table_lines(columns, lines), *diverged(table.get("diverged", {}))]


def mean(row: dict[str, Any]) -> Mapping[str, float | None]:
    """The mean over the tasks; without an interval in older results."""
    values = [estimate["mean"] for estimate in row["test"].values()]
    return row.get("mean") or {"mean": sum(values) / len(values), "ci95": None}


def steps(row: dict[str, Any]) -> str:
    """Steps, and the epochs of every task, once if all are equal."""
    epochs = list(dict.fromkeys(f"{value:.1f}" for value in (row["epochs"] or {}).values()))
    return f"{row['steps']:,}" + (f" ({' / '.join(epochs)})" if epochs else "")


def _footer(table: dict[str, Any]) -> str:
    hardware, order = table["hardware"], ", ".join(table["higher_is_better"])
    return (
        f"{data(table)}Test set, used once. Seeds {table['seeds']}; intervals: {table['interval']};"
        " single tasks: one training per task; delta_m: mean relative change from the single tasks, in"
        " percent; signs: better (+), worse (-) or within the noise of the seeds (=), for"
        f" {order}. {hardware['device']}, {hardware['threads']} threads; torch"
        f" {table['versions']['torch']}."
    )


def data(table: dict[str, Any]) -> str:
    """The files and the split, and the number of training examples."""
    data = table.get("data") or {}
    counts = dict.fromkeys(f"{count:,}" for count in (data.get("train") or {}).values())
    parts = [data["protocol"]] if data.get("protocol") else []
    parts += [f"{' / '.join(counts)} training examples"] if counts else []
    return f"Data: {'; '.join(parts)}. " if parts else ""


def _verdict(found: Mapping[str, float | None]) -> str:
    """The difference from the first method, and whether it is within the noise of the seeds."""
    if found["mean"] == 0:
        return ""
    return signed(found) + (", within the noise" if sign(found) == "=" else "")
