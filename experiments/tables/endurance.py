"""Markdown table for an `endurance.json` of `experiments.endurance`."""

from __future__ import annotations

from typing import Any


def section(endurance: dict[str, Any]) -> str:
    """Time and memory of a step in the first and in the last tenth of a training."""
    lines = [
        f"### endurance: {endurance['steps']:,} steps of MAML on sinusoids",
        "| engine | ms per step, first tenth | last | change | MiB, first tenth | last | growth |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in endurance["engines"].items():
        seconds, memory = row["seconds"], row["memory_mib"]
        lines.append(
            f"| {name} | {seconds[0] * 1e3:.2f} | {seconds[-1] * 1e3:.2f} | {row['time_change']:+.1%}"
            f" | {memory[0]:.1f} | {memory[-1]:.1f} | {row['memory_growth']:+.2%} |"
        )
    hardware = endurance["hardware"]
    return "\n".join(
        [
            *lines,
            "",
            "Medians over a tenth of the steps, with validations, checkpoints and the TensorBoard log;"
            f" memory is that of the whole process. {hardware['device']}, {hardware['threads']} threads;"
            f" torch {endurance['versions']['torch']}.",
        ]
    )
