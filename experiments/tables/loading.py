"""Markdown table for a `loading.json` of `experiments.loading`."""

from __future__ import annotations

from typing import Any

from .markdown import table_lines


def section(loading: dict[str, Any]) -> str:
    """Time of a training step with images from memory and from files."""
    hardware, workers = loading["hardware"], loading["workers"]
    head = ["images", "ms per step", "throughput"]
    rows = [
        ["in memory", f"{loading['memory'] * 1e3:.1f}", "1"],
        [f"files, {workers} workers", f"{loading['files'] * 1e3:.1f}", f"{loading['throughput']:.2f}"],
    ]
    return "\n".join(
        [
            "### loading: images read when they are drawn",
            *table_lines(head, rows),
            "",
            f"ProtoNet, Conv-4, JPEG images of {loading['size']}x{loading['size']}, the same episodes;"
            f" medians of {loading['rounds']} rounds of {loading['steps']} steps, in turn."
            f" {hardware['device']}, {hardware['threads']} threads; torch {loading['versions']['torch']}.",
        ]
    )
