"""Markdown table for a `new_task.json` of `experiments.new_task`."""

from __future__ import annotations

from typing import Any

from .markdown import table_lines
from .report import signed


def markdown(table: dict[str, Any]) -> str:
    """The table in Markdown."""
    accuracy = f"accuracy, {table['ways']} intents, {table['shots']} sentences per intent"
    rows = []
    for row in table["rows"]:
        percent = {name: 100 * value for name, value in row["accuracy"].items()}
        cells = [signed(percent, digits=1, plus=False), f"{100 * row['worst_decile']:.1f}"]
        cells.append("; ".join(sorted(set(row["adaptation"]))))
        rows.append([row["encoder"], *cells])
    hardware = table["hardware"]
    lines = [
        *table_lines(["encoder", accuracy, "worst tenth", "adaptation (strategy, steps)"], rows),
        "",
        f"{table['tasks']} tasks from domains not used in training or validation, the same for every"
        f" encoder; seeds {table['seeds']}; intervals: {table['interval']}. {hardware['device']},"
        f" {hardware['threads']} threads; torch {table['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"
