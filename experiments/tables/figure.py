"""Plot of the metric against adaptation, training time and gradient evaluations, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Run = dict[str, Any]


def draw(runs: dict[str, list[Run]], metric: str, path: Path) -> None:
    """Plot one line per recipe, for its first seed; bands are 95 % intervals over tasks.

    The left axes show new tasks after each adaptation step or, if nothing adapts in steps, training tasks
    and new tasks.
    """
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), constrained_layout=True, sharey=True)
    left, middle, right = axes
    in_steps = any(len(results[0]["curve"]) > 1 for results in runs.values())
    for number, (recipe, results) in enumerate(runs.items()):
        first, color = results[0], f"C{number}"
        label = f"{recipe} ({first['adaptation']['strategy']})"
        left_points = first["curve"] if in_steps else [first["seen"], first["test"]]
        _line(left, list(range(len(left_points))), [point[metric] for point in left_points], color, label)
        points = [{"mean": entry["validation"], "ci95": entry["ci95"]} for entry in first["history"]]
        for axis, cost in ((middle, "seconds"), (right, "gradient_evaluations")):
            _line(axis, [entry[cost] for entry in first["history"]], points, color, recipe)
    if in_steps:
        left.set(xlabel="adaptation steps at test", title="new tasks, selected adaptation")
        left.xaxis.get_major_locator().set_params(integer=True)
    else:
        left.set(xticks=[0, 1], xticklabels=["training tasks", "new tasks"], title="selected adaptation")
    left.set_ylabel(metric)
    middle.set(xlabel="training seconds", title="validation tasks")
    right.set(xlabel="gradient evaluations", title="validation tasks")
    left.legend(fontsize=8)
    middle.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _line(axes: Any, x: list[float], found: list[dict[str, float]], color: str, label: str) -> None:
    mean = [point["mean"] for point in found]
    low = [point["mean"] - point["ci95"] for point in found]
    high = [point["mean"] + point["ci95"] for point in found]
    axes.plot(x, mean, "o-" if len(x) < 25 else "-", color=color, label=label, markersize=3)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
