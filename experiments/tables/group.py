"""Markdown for a `group.json` of `experiments.group`."""

from __future__ import annotations

import shlex
from typing import Any

from .markdown import table_lines
from .multitask import FEW, data, heads, mean, steps
from .report import sign, signed

NAMES = {
    "apart": "one model per task",
    "together": "one model",
    "grouped": "grouped",
    "random": "random groups",
}


def section(name: str, kept: list[str], table: dict[str, Any]) -> str:
    """Section of the results page; `kept` are the overrides that are part of the experiment."""
    command = shlex.join(["python", "-m", "experiments.group", *kept])
    link = f"[All numbers](../experiments/results/{name}/group.md)."
    measures = list(table["higher_is_better"])
    return "\n".join(
        [
            *(f"### {name}", "```bash", command, "```", "", *_listed(table), ""),
            *_rows(table, measures if len(measures) <= FEW else []),
            *("", f"{_footer(table)} {link}", ""),
            f"![{name}](../experiments/results/{name}/group.png)",
        ]
    )


def markdown(table: dict[str, Any]) -> str:
    """The conclusions, a table with all measures, and the random groups."""
    measures = list(table["higher_is_better"])
    lines = [*_listed(table), "", *_rows(table, measures), ""]
    lines += [f"Random groups: {partition(groups)}" for groups in table["random_groups"]]
    lines += [""] if table["random_groups"] else []
    return "\n".join([*lines, _footer(table)]) + "\n"


def statements(table: dict[str, Any]) -> list[str]:
    """The groups, how stable they are, which row was best and by how much, and what the control says."""
    relatedness, seeds = table["relatedness"], table["seeds"]
    same = sum(groups == table["groups"] for groups in table["groups_by_seed"])
    result = [
        f"Groups by {relatedness['measure']}, at most {table['experiment']['models']}:"
        f" {partition(table['groups'])}. The matrix of a single seed gives these groups for {same} of"
        f" {len(seeds)} seeds.",
        _best(table),
    ]
    if "grouped - random" not in table["differences"]:
        reason = "there is no other grouping with groups of these sizes"
        if table["experiment"]["control"] == 0:
            reason = "control=0"
        return [*result, f"No comparison with random groups: {reason}."]
    count = len(table["random_groups"])
    control = "a random grouping" if count == 1 else f"the mean of {count} random groupings"
    difference = _difference(table, "grouped", "random")
    return [*result, f"Grouped against {control} with groups of the same sizes: {difference}."]


def partition(groups: list[list[str]]) -> str:
    """Groups in words: `a, b | c`."""
    return " | ".join(", ".join(group) for group in groups)


def _best(table: dict[str, Any]) -> str:
    """Which of apart, together and grouped was best, and its paired differences from the others."""
    best, rows = table["best"], {row["method"]: row for row in table["rows"]}
    parts, noise = [], []
    for other in ("apart", "together", "grouped"):
        if other == best:
            continue
        if sorted(map(sorted, rows[other]["groups"])) == sorted(map(sorted, rows[best]["groups"])):
            parts.append(f"{NAMES[other]} is the same grouping")
            continue
        text = _difference(table, best, other)
        noise.append("within the noise" in text)
        parts.append(f"against {NAMES[other]} {text}")
    verdict = "; no difference is beyond the noise, so none of them is established as the best"
    return (
        f"Best on the test set: {NAMES[best]}; paired differences in delta_m: {', '.join(parts)}"
        f"{verdict if all(noise) else ''}."
    )


def _difference(table: dict[str, Any], one: str, other: str) -> str:
    """`delta_m` of a row minus that of another, in percent, and whether it is within the noise."""
    difference = table["differences"].get(f"{one} - {other}")
    if difference is None:
        difference = dict(table["differences"][f"{other} - {one}"])
        difference["mean"] = -difference["mean"]
    return f"{signed(difference)} %" + (" (within the noise)" if sign(difference) == "=" else "")


def _listed(table: dict[str, Any]) -> list[str]:
    return [f"- {statement}" for statement in statements(table)]


def _rows(table: dict[str, Any], measures: list[str]) -> list[str]:
    """Table with one row for each way to divide the tasks, and one column per measure."""
    metrics = {name.rpartition("/")[2]: up for name, up in table["higher_is_better"].items()}
    means = [f"mean {metric} {'↑' if up else '↓'}" for metric, up in metrics.items()]
    means = means if len(metrics) == 1 else []
    columns = ["trained", "models", *means, *heads(table, measures), "delta_m, %"]
    columns += ["signs", "steps per model (epochs)", "parameters"]
    lines = []
    for row in table["rows"]:
        values = [mean(row) for _ in means] + [row["test"][m] for m in measures]
        cells = [NAMES[row["method"]], str(row["models"])]
        cells += [signed(value, digits=4, plus=False) for value in values]
        alone = row["method"] == "apart"
        cells += ["0", ""] if alone else [signed(row["delta_m"]), " ".join(row["signs"].values())]
        cells += [steps(row), f"{row['parameters']:,.0f}"]
        lines.append(cells)
    return table_lines(columns, lines)


def _footer(table: dict[str, Any]) -> str:
    hardware, order = table["hardware"], ", ".join(table["higher_is_better"])
    return (
        f"{data(table)}Test set, used once; the matrix is that of training batches. Every model has the"
        " same number of steps and of examples of each task per step, and its own learning rate, selected"
        f" on validation. Seeds {table['seeds']}; intervals: {table['interval']}; delta_m: mean relative"
        " change from one model per task, in percent; signs: better (+), worse (-) or within the noise of"
        f" the seeds (=), for {order}. {hardware['device']}, {hardware['threads']} threads; torch"
        f" {table['versions']['torch']}."
    )
