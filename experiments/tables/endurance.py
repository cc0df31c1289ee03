"""Markdown table for an `endurance.json` of `experiments.endurance`."""

from __future__ import annotations

from typing import Any

from .markdown import table_lines


def section(endurance: dict[str, Any]) -> str:
    """Time and memory of a step in the first and in the last tenth of a training."""
    head = ["engine", "ms per step, first tenth", "last", "change", "MiB, first tenth", "last", "growth"]
    rows = []
    for name, row in endurance["engines"].items():
        seconds, memory = row["seconds"], row["memory_mib"]
        times = [f"{seconds[0] * 1e3:.2f}", f"{seconds[-1] * 1e3:.2f}", f"{row['time_change']:+.1%}"]
        peaks = [f"{memory[0]:.1f}", f"{memory[-1]:.1f}", f"{row['memory_growth']:+.2%}"]
        rows.append([name, *times, *peaks])
    hardware = endurance["hardware"]
    return "\n".join(
        [
            f"### endurance: {endurance['steps']:,} steps of MAML on sinusoids",
            *table_lines(head, rows),
            "",
            "Medians over a tenth of the steps, with validations, checkpoints and the TensorBoard log;"
            f" memory is that of the whole process. {hardware['device']}, {hardware['threads']} threads;"
            f" torch {endurance['versions']['torch']}.",
        ]
    )
