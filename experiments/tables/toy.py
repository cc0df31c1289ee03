"""Markdown table for a `toy.json` of `experiments.toy`."""

from __future__ import annotations

from typing import Any

from .markdown import table_lines


def section(toy: dict[str, Any]) -> str:
    """Aggregators by the number of initial points from which they reach the Pareto set."""
    results = toy["aggregators"]
    starts = next(iter(results.values()))["starts"]
    head = [f"Pareto set reached, of {len(starts)} initial points", "not reached from", "aggregators"]
    groups: dict[tuple[int, str], list[str]] = {}
    for name, result in results.items():
        places = [
            f"({x:g}, {y:g})"
            for (x, y), gap in ((s["from"], s["gap"]) for s in result["starts"])
            if gap > toy["tolerance"]
        ]
        groups.setdefault((result["reached"], ", ".join(places) or "-"), []).append(name)
    rows = [
        [reached, stuck, ", ".join(names)]
        for (reached, stuck), names in sorted(groups.items(), reverse=True)
    ]
    excluded = "; ".join(f"{name} {why}" for name, why in toy["left_out"].items())
    return "\n".join(
        [
            "### toy: two losses of two parameters on which gradient descent on the mean fails",
            *table_lines(head, rows),
            "",
            f"{toy['optimizer']}, learning rate {toy['lr']:g}, at most {toy['steps']:,} steps;"
            f" reached: no point decreases both losses by more than {toy['tolerance']:g}."
            f" Left out: {excluded}.",
            "",
            "![toy](../experiments/results/toy/toy.png)",
        ]
    )
