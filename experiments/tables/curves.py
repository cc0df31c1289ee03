"""Markdown table and figure for a `curves.json` of `experiments.curves`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ..utils.search import label
from .markdown import table_lines
from .report import signed


def markdown(table: dict[str, Any]) -> str:
    """One table for each number of shots: the metric after every step of adaptation."""
    metric, lines = table["experiment"]["metric"], []
    for shots in dict.fromkeys(row["shots"] for row in table["rows"]):
        rows = [row for row in table["rows"] if row["shots"] == shots]
        stages = range(len(rows[0]["curve"]))
        head = [f"{metric}, {shots} shots; after steps:", *map(str, stages), "selected", "training s"]
        cells = [
            [
                row["method"],
                *(_cell(stage) for stage in row["curve"]),
                label(row["tuned"]),
                f"{row['seconds']:.0f}" if row["seconds"] is not None else "",
            ]
            for row in rows
        ]
        lines += [*table_lines(head, cells), ""]
    return "\n".join([*lines, _footer(table)]) + "\n"


def _cell(stage: dict[str, Any]) -> str:
    if "diverged" in stage:
        return f"diverged ({len(stage['diverged'])})"
    return signed(stage, digits=3, plus=False)


def section(name: str, kept: list[str], table: dict[str, Any]) -> str:
    """Section of the results page; `kept` are the overrides that are part of the experiment."""
    methods, shots = (
        list(dict.fromkeys(row[what] for row in table["rows"])) for what in ("method", "shots")
    )
    lists = {"run": methods, "shots": shots, "seeds": table["seeds"]}
    chosen = [f"{key}=[{','.join(map(str, values))}]" for key, values in lists.items()]
    command = shlex.join(["python", "-m", "experiments.curves", *kept, *chosen])
    figure = f"![{name}](../experiments/results/{name}/curves.png)"
    return "\n".join([f"### {name}", "```bash", command, "```", "", markdown(table).strip(), "", figure])


def _footer(table: dict[str, Any]) -> str:
    hardware = table["hardware"]
    steps = sorted({row["steps"] for row in table["rows"] if row["steps"] is not None})
    tuned = "; ".join(f"{name} of {values}" for name, values in table["tune"].items())
    selected = f"selected on validation with seeds {table['tune_seeds']} and {table['tune_shots']} shots"
    return (
        f"{table['tasks']:,} new tasks, tested once (diverged: with so many seeds, in at least one task);"
        f" {', '.join(f'{n:,}' for n in steps)} training steps; {selected}: {tuned or 'nothing'}; weights:"
        f" selected on validation. Seeds {table['seeds']}; intervals: {table['interval']}."
        f" {hardware['device']}, {hardware['threads']} threads; torch {table['versions']['torch']}."
    )


def draw(table: dict[str, Any], path: Path) -> None:
    """One panel for each number of shots, one line for each method; bands are intervals over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = list(dict.fromkeys(row["shots"] for row in table["rows"]))
    figure, axes = plt.subplots(
        1, len(counts), figsize=(4.5 * len(counts), 4), sharey=True, squeeze=False, constrained_layout=True
    )
    for ax, shots in zip(axes[0], counts):
        for row in (row for row in table["rows"] if row["shots"] == shots):
            finite = [stage for stage in row["curve"] if "mean" in stage]
            means = [stage["mean"] for stage in finite]
            widths = [stage["ci95"] or 0.0 for stage in finite]
            (line,) = ax.plot(range(len(means)), means, "o-", markersize=3, label=row["method"])
            low, high = ([mean + sign * width for mean, width in zip(means, widths)] for sign in (-1, 1))
            ax.fill_between(range(len(means)), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        scale = "log" if any(len(line.get_xdata()) for line in ax.lines) else "linear"
        ax.set(xlabel="inner steps", title=f"{shots} shots", yscale=scale)
    axes[0][0].set_ylabel(table["experiment"]["metric"])
    axes[0][-1].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
