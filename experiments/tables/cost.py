"""The README's table of `experiments.cost`."""

from __future__ import annotations

from typing import Any


def section(cost: dict[str, Any]) -> str:
    """Time and memory of a step, beside equal weights in plain torch."""
    lines = [
        f"### cost: a step of {cost['tasks']} tasks on LeNet, batches of {cost['batch']}",
        "| gradients combined by | ms | times equal weights | peak MiB | times its peak |",
        "|---|---|---|---|---|",
    ]
    for name, way in cost["ways"].items():
        lines.append(
            f"| {name} | {way['seconds'] * 1e3:.1f} | {way['times_equal_weights']:.2f}"
            f" | {way['peak_mib']:.0f} | {way['times_its_peak']:.2f} |"
        )
    floor, hardware = cost["one_forward_and_a_backward_for_each_task"], cost["hardware"]
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {cost['rounds']} rounds. One pass forward and a backward for each task is"
            f" {floor:.2f} times the arithmetic of equal weights. Largest relative difference of gradients"
            f" that must agree, in float32: {cost['relative_difference']:.1e}. {hardware['device']},"
            f" {hardware['threads']} threads; torch {cost['versions']['torch']}.",
        ]
    )
