"""What a table of `experiments.multitask` says, in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from .report import sign, signed


def section(name: str, kept: list[str], table: dict[str, Any]) -> str:
    """A part of the README; `kept` are the overrides that belong to the experiment."""
    methods = [row["method"] for row in table["rows"][1:]]
    lists = [f"run=[{','.join(methods)}]", f"seeds=[{','.join(map(str, table['seeds']))}]"]
    command = shlex.join(["python", "-m", "experiments.multitask", *kept, *lists])
    return "\n".join([f"### {name}", "```bash", command, "```", "", markdown(table).strip()])


def markdown(table: dict[str, Any]) -> str:
    """The table in Markdown: every measure, `delta_m`, the signs, and what is noise."""
    measures = list(table["higher_is_better"])
    heads = [f"{m} {'↑' if up else '↓'}" for m, up in table["higher_is_better"].items()]
    columns = ["method", *heads, "delta_m, %", f"against {table['rows'][1]['method']}"]
    lines = [
        f"| {' | '.join([*columns, 'signs', 'parameters', 'training s'])} |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for row in table["rows"]:
        cells = [signed(row["test"][m], digits=4, plus=False) for m in measures]
        if "delta_m" in row:
            cells += [signed(row["delta_m"]), _verdict(row["against_first"])]
            cells.append(" ".join(row["signs"].values()))
        else:
            cells += ["0", "", ""]
        lines.append(
            f"| {row['method']} | {' | '.join(cells)} | {row['parameters']:,} | {row['seconds']:.0f} |"
        )
    hardware = table["hardware"]
    lines += [
        "",
        f"Test set, used once. Seeds {table['seeds']}; intervals: {table['interval']}; delta_m: mean"
        " relative change against the single tasks, in percent; signs: better (+), worse (-) or within the"
        f" noise of the seeds (=), by task. {hardware['device']}, {hardware['threads']} threads; torch"
        f" {table['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def _verdict(found: Mapping[str, float | None]) -> str:
    """The difference to the first method, and whether the seeds tell it from none."""
    if found["mean"] == 0:
        return ""
    return signed(found) + (", within the noise" if sign(found) == "=" else "")
