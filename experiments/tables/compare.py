"""Markdown table for a `table.json` of `experiments.compare`."""

from __future__ import annotations

import math
from typing import Any

from . import published
from .markdown import diverged, table_lines
from .report import sign, signed

BATCHNORM = (
    "Inductive BatchNorm: the same weights, with statistics of the support set or stored ones."
    " Transductive BatchNorm: with those of the query set."
)
TRANSDUCTIVE = "\\* transductive: predictions depend on all query inputs of a task."


def markdown(table: dict[str, Any]) -> str:
    """Markdown table of a comparison, followed by a line on how it was measured."""
    percent = table["experiment"]["metric"] == "accuracy"

    def cell(found: dict[str, float]) -> str:
        factor = 100 if percent else 1
        mean = f"{found['mean'] * factor:.{1 if percent else 3}f}"
        is_finite = found["ci95"] is not None and math.isfinite(found["ci95"])
        return f"{mean} ± {found['ci95'] * factor:.{1 if percent else 3}f}" if is_finite else mean

    def to_best(row: dict[str, Any]) -> str:
        if not row.get("to_best"):
            return "-"
        factor = 100 if percent else 1
        scaled = {key: factor * value for key, value in row["to_best"].items() if value is not None}
        return f"{signed({'ci95': None, **scaled}, digits=1 if percent else 3)} ({sign(row['to_best'])})"

    def to_published(row: dict[str, Any]) -> str:
        return published.cell(row.get("published"), (row.get("as_trained") or row["new"])["mean"])

    unit = f"{table['experiment']['metric']}{', %' if percent else ''}"
    has_batchnorm = any(row.get("by_batchnorm") for row in table["rows"])
    kinds = ("inductive", "transductive") if has_batchnorm else ()
    head = ["recipe", f"training tasks ({unit})", "new tasks"]
    head += [f"new tasks, {kind} BatchNorm" for kind in kinds]
    head += ["worst tenth, new", "adaptation (strategy, steps)", "new tasks, adapted as trained"]
    has_published = any(row.get("published") is not None for row in table["rows"])
    head += ["published (difference)"] if has_published else []
    head += ["to the best", "gradient evaluations", "steps", "training s"]
    rows = [
        [
            row["recipe"] + ("*" if row.get("transductive") else ""),
            *(cell(row[split]) for split in ("seen", "new")),
            *(cell(row["by_batchnorm"][k]) if k in row.get("by_batchnorm", {}) else "-" for k in kinds),
            cell(row["worst_tenth"]),
            "; ".join(sorted(set(row["adaptation"]))) or "-",
            cell(row["as_trained"]) if row.get("as_trained") else "-",
            *([to_published(row)] if has_published else []),
            to_best(row),
            f"{row['gradient_evaluations']:,}",
            f"{row['steps']:,}",
            f"{row['seconds']:.1f}",
        ]
        for row in table["rows"]
    ]
    hardware = table["hardware"]
    by_time = table["experiment"]["gradient_evaluations"] is None
    budget = "max_minutes" if by_time else "gradient_evaluations"
    early = [row for row in table["rows"] if set(row.get("stopped_by", ())) - {budget}]
    lines = [
        *table_lines(head, rows),
        *diverged(table.get("diverged", {})),
        "",
        *(f"{row['recipe']}: ended before the budget ({', '.join(row['stopped_by'])})." for row in early),
        *(
            [f"Budget: {table['experiment']['max_minutes']:g} minutes per recipe, with validation."]
            if by_time
            else []
        ),
        "To the best: the paired difference to the best recipe on the same new tasks; (=) is within the"
        " noise. Training seconds are without validation and compiling.",
        f"Seeds {table['seeds']}; intervals: {table['interval']}; BatchNorm: {table['batchnorm']}."
        f" {hardware['device']}, {hardware['threads']} threads; torch {table['versions']['torch']}.",
    ]
    if kinds:
        lines.append(BATCHNORM)
    if has_published:
        lines.append(published.NOTE)
    if any(row.get("transductive") for row in table["rows"]):
        lines.append(TRANSDUCTIVE)
    return "\n".join(lines) + "\n"
