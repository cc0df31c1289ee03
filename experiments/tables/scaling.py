"""Markdown table for a `scaling.json` of `experiments.scaling`."""

from __future__ import annotations

from typing import Any

from .markdown import table_lines


def section(scaling: dict[str, Any]) -> str:
    """Time of a step of one process and of several."""
    processes, hardware = scaling["processes"], scaling["hardware"]
    head = ["work", "1 process, ms", f"{processes} processes, ms", "speedup"]
    rows = [
        [
            name,
            f"{row['one_process'] * 1e3:.1f}",
            f"{row['all_processes'] * 1e3:.1f}",
            f"{row['speedup']:.2f}",
        ]
        for name, row in scaling["works"].items()
    ]
    return "\n".join(
        [
            f"### scaling: {processes} processes, one core each",
            *table_lines(head, rows),
            "",
            f"Medians of {scaling['rounds']} rounds of {scaling['steps']} steps, in turn; the same work in"
            f" all. {hardware['device']}; torch {scaling['versions']['torch']}.",
        ]
    )
