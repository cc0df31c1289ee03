"""The README's table of `experiments.toy`."""

from __future__ import annotations

from typing import Any


def section(toy: dict[str, Any]) -> str:
    """Who reaches the Pareto set of two losses, from how many of the starts."""
    found = toy["aggregators"]
    starts = next(iter(found.values()))["starts"]
    lines = [
        "### toy: two losses of two parameters, on which descending their mean gets stuck",
        f"| on the Pareto set, of {len(starts)} starts | stuck from | aggregators |",
        "|---|---|---|",
    ]
    groups: dict[tuple[int, str], list[str]] = {}
    for name, one in found.items():
        places = [
            f"({x:g}, {y:g})"
            for (x, y), gap in ((s["from"], s["gap"]) for s in one["starts"])
            if gap > toy["tolerance"]
        ]
        groups.setdefault((one["reached"], ", ".join(places) or "-"), []).append(name)
    for (reached, stuck), names in sorted(groups.items(), reverse=True):
        lines.append(f"| {reached} | {stuck} | {', '.join(names)} |")
    left = "; ".join(f"{name} {why}" for name, why in toy["left_out"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{toy['optimizer']}, learning rate {toy['lr']:g}, at most {toy['steps']:,} steps;"
            f" arrived where no point lowers both losses by more than {toy['tolerance']:g}."
            f" Left out: {left}.",
            "",
            "![toy](../experiments/results/toy/toy.png)",
        ]
    )
