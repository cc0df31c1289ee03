"""What the gradients of tasks say about each other: two sections of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metamtl import analysis

from ..tables.analysis_figures import draw_bars
from ..tables.html_report import Picture, Section, Statement, interval
from .analyses import MOST_LAYERS, Context
from .batches import below, corrected, over_batches, scalars

SMALL_COSINE = 0.1  # conflicts up to this cosine are no reason to change anything
CANCEL = (
    "Where the mean gradient is zero, the gradients of the tasks cancel, so that some pairs conflict and a"
    " step on one task increases losses of others: conflict at the end of a training is a reason to"
    " compare, not a proof of harm."
)


def relatedness_section(results_by_name: Mapping[str, list[Any]], context: Context) -> Section:
    """Which tasks help each other, by their gradients and by steps on each of them."""
    section = Section("Who helps whom")
    names = {
        "cosine": "cosine of the gradients of two tasks",
        "transfer": "relative decrease of a task's loss by a step on another one, to first order",
        "look_ahead": "relative decrease of a task's loss by a step on another one, measured",
    }
    for name, text in names.items():
        matrices: list[analysis.Relatedness] = results_by_name.get(name, [])
        if not matrices:
            continue
        values = scalars(matrices)
        section.statements.append(Statement(f"{text}, mean over pairs", values["mean"]))
        section.statements.append(Statement(f"{text}, fraction of pairs below zero", values["conflicts"]))
        if name == "cosine" and below(values["mean"], -SMALL_COSINE):
            section.advice.append(
                f"The gradients of the tasks conflict in the mean (cosine {interval(values['mean'])}): try"
                " an aggregator that resolves conflicts, such as PCGrad or UPGrad."
            )
        if name == "transfer":
            continue  # the same figure as that of the measured decrease, unless the step is large
        which = "mean over batches" if context.named else "the first batch"
        shown = analysis.Relatedness.mean(matrices) if context.named else matrices[0]
        caption = f"{text[0].upper()}{text[1:]} ({which}); a row affects the columns"
        section.pictures.append(Picture(caption, shown.plot()))
        if context.named and name == "look_ahead":
            _pairs(section, matrices)
    section.notes += [f"Steps are gradient steps with the learning rate {context.lr:g}.", CANCEL]
    return section


def _pairs(section: Section, matrices: Sequence[analysis.Relatedness]) -> None:
    """The effects of named tasks on each other; the intervals hold for all pairs at the same time."""
    tasks = matrices[0].tasks
    effects = {(a, b): over_batches([m[a, b] for m in matrices]) for a in tasks for b in tasks if a != b}
    effects = {pair: corrected(value, len(effects)) for pair, value in effects.items()}
    order = sorted(effects, key=lambda pair: effects[pair].mean)
    for a, b in dict.fromkeys((order[-1], order[0])):
        section.statements.append(Statement(f"effect of a step on {a} on the loss of {b}", effects[a, b]))
    labels = {f"{a} on {b}": value for (a, b), value in effects.items()}
    caption = "Relative decrease of a task's loss by a step on another one; simultaneous 95 % intervals"
    section.pictures.append(Picture(caption, draw_bars(labels)))
    harmful = [pair for pair in order if below(effects[pair], 0)]
    for a, b in harmful:
        section.advice.append(
            f"A step on {a} increases the loss of {b} ({interval(effects[a, b])}): compare training them"
            " together with training them apart."
        )
    if harmful and 2 < len(tasks) <= 14:
        groups = analysis.best_groups(analysis.Relatedness.mean(matrices), models=2).groups
        if len(groups) > 1:
            text = " and ".join(f"({', '.join(group)})" for group in groups)
            section.advice.append(f"With two models, these groups help each other most: {text}.")


def conflict_section(results_by_name: Mapping[str, list[Any]], context: Context) -> Section:
    """In which layers the tasks conflict."""
    section = Section("Where it conflicts")
    results: list[analysis.Conflict] = results_by_name.get("conflict", [])
    if not results:
        return section
    values = scalars(results)
    cosines = {n.removeprefix("cosine/"): v for n, v in values.items() if n.startswith("cosine/")}
    parts = {n.removeprefix("conflicts/"): v for n, v in values.items() if n.startswith("conflicts/")}
    cosines = {layer: corrected(value, len(cosines)) for layer, value in cosines.items()}
    order = sorted(cosines, key=lambda layer: cosines[layer].mean)
    for layer in order[:MOST_LAYERS]:
        section.statements.append(Statement(f"{layer}, mean cosine over pairs", cosines[layer]))
    if order:
        text = f"{order[0]}, fraction of pairs that conflict"
        section.statements.append(Statement(text, parts[order[0]]))
        caption = "Mean cosine over pairs of tasks, by layer; simultaneous 95 % intervals"
        section.pictures.append(Picture(caption, draw_bars(cosines)))
    bad = [layer for layer in order if below(cosines[layer], -SMALL_COSINE)]
    if bad:
        how = (
            "nets.Branching gives the tasks layers of their own there"
            if context.named
            else "an aggregator such as PCGrad or UPGrad resolves conflicts"
        )
        section.advice.append(
            f"The tasks conflict in {', '.join(bad[:3])} (cosine {interval(cosines[bad[0]])} in {bad[0]}):"
            f" {how}; compare."
        )
    others = [layer for layer in context.layers if layer not in cosines]
    if others:
        why = "some task does not use them" if context.named else "some task has no gradient there"
        section.notes.append(f"Not compared, because {why}: {', '.join(others)}.")
    return section
