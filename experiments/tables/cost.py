"""Markdown table for a `cost.json` of `experiments.cost`."""

from __future__ import annotations

from typing import Any

from .markdown import table_lines


def section(cost: dict[str, Any]) -> str:
    """Time and memory of a step, relative to equal weights in plain torch."""
    rows = [
        [
            name,
            f"{method['seconds'] * 1e3:.1f}",
            f"{method['times_equal_weights']:.2f}",
            f"{method['peak_mib']:.0f}",
            f"{method['times_its_peak']:.2f}",
        ]
        for name, method in cost["methods"].items()
    ]
    head = ["method", "ms", "relative to equal weights", "peak MiB", "relative peak"]
    floor, hardware = cost["one_forward_and_a_backward_for_each_task"], cost["hardware"]
    return "\n".join(
        [
            f"### cost: one step, {cost['tasks']} tasks on LeNet, batch size {cost['batch']}",
            *table_lines(head, rows),
            "",
            f"Medians of {cost['rounds']} rounds. One forward pass and one backward pass per task have"
            f" {floor:.2f} times the operations of equal weights. Largest relative difference of gradients"
            f" that must agree, in float32: {cost['relative_difference']:.1e}. {hardware['device']},"
            f" {hardware['threads']} threads; torch {cost['versions']['torch']}.",
        ]
    )
