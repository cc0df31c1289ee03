"""Markdown tables for a `multitask.json` of `experiments.multitask`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.search import label
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
    methods = [row["method"] for row in table["rows"][1:]]
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
    validation = [
        f"| on validation | {' | '.join(_heads(table, measures))} | chosen on it |",
        "|---" * (len(measures) + 2) + "|",
    ]
    for row in table["rows"]:
        tuned = row["tuned"] if "delta_m" in row else {k: label(v) for k, v in row["tuned"].items()}
        values = [signed(row["validation"][m], digits=4, plus=False) for m in measures]
        validation.append(f"| {row['method']} | {' | '.join(values)} | {label(tuned)} |")
    return "\n".join([*_test(table, measures), "", *validation, "", _footer(table)]) + "\n"


def _heads(table: dict[str, Any], measures: list[str]) -> list[str]:
    return [f"{m} {'↑' if table['higher_is_better'][m] else '↓'}" for m in measures]


def _test(table: dict[str, Any], measures: list[str]) -> list[str]:
    """Table with one row per method and one column per measure."""
    columns = ["method", *_heads(table, measures), "delta_m, %", f"against {table['rows'][1]['method']}"]
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
    return lines


def _footer(table: dict[str, Any]) -> str:
    hardware, order = table["hardware"], ", ".join(table["higher_is_better"])
    return (
        f"Test set, used once. Seeds {table['seeds']}; intervals: {table['interval']}; delta_m: mean"
        " relative change from the single tasks, in percent; signs: better (+), worse (-) or within the"
        f" noise of the seeds (=), for {order}. {hardware['device']}, {hardware['threads']} threads; torch"
        f" {table['versions']['torch']}."
    )


def _verdict(found: Mapping[str, float | None]) -> str:
    """The difference from the first method, and whether it is within the noise of the seeds."""
    if found["mean"] == 0:
        return ""
    return signed(found) + (", within the noise" if sign(found) == "=" else "")
