"""Markdown table for a `search.json` of `experiments.search`."""

from __future__ import annotations

from typing import Any

from ..utils.search import label
from .markdown import table_lines
from .report import signed


def markdown(table: dict[str, Any]) -> str:
    """The trials, the best one in bold, and its test result."""
    names, metric = list(table["best"]), table["experiment"]["metric"]
    rows = []
    for trial in table["trials"]:
        value = "diverged" if trial["validation"] is None else f"{trial['validation']:.4f}"
        cells = [
            f"{trial['values'][name]:.4g}"
            if isinstance(trial["values"][name], float)
            else str(trial["values"][name])
            for name in names
        ]
        cells = [*cells, value]
        rows.append([f"**{c}**" for c in cells] if trial["values"] == table["best"] else cells)
    figures = ", ".join(
        f"{split} {signed(table[split], digits=4, plus=False)}" for split in ("validation", "test")
    )
    lines = [
        *table_lines([*names, f"validation {metric}"], rows),
        "",
        f"Best: {label(table['best'])}; with seeds {table['seeds']}: {metric} {figures}. Selected on"
        f" validation tasks with seeds {table['tune_seeds']}, by search.method={table['search']['method']};"
        f" tested once. Interval: {table['interval']}.",
    ]
    return "\n".join(lines) + "\n"
