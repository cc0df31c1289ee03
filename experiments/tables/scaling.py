"""Markdown table for a `scaling.json` of `experiments.scaling`."""

from __future__ import annotations

from typing import Any


def section(scaling: dict[str, Any]) -> str:
    """Time of a step of one process and of several."""
    processes, hardware = scaling["processes"], scaling["hardware"]
    lines = [
        f"### scaling: {processes} processes, one core each",
        f"| work | 1 process, ms | {processes} processes, ms | speedup |",
        "|---|---|---|---|",
    ]
    for name, row in scaling["works"].items():
        lines.append(
            f"| {name} | {row['one_process'] * 1e3:.1f} | {row['all_processes'] * 1e3:.1f}"
            f" | {row['speedup']:.2f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {scaling['rounds']} rounds of {scaling['steps']} steps, in turn; the same work in"
            f" all. {hardware['device']}; torch {scaling['versions']['torch']}.",
        ]
    )
