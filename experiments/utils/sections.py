"""What the results of the analyses say: sections of a report, with intervals over batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from metamtl import analysis

from ..tables.analysis_figures import draw_bars, draw_line, draw_stages
from ..tables.html_report import Picture, Section, Statement, interval
from .analyses import MOST_LAYERS, Context
from .batches import above, below, corrected, over_batches, scalars
from .task_sections import conflict_section, relatedness_section

SMALL_PART = 0.1  # a layer that moves less than this part of the one that moves most hardly moves


def sections(
    results_by_name: Mapping[str, list[Any]], omitted: Mapping[str, str], context: Context
) -> list[Section]:
    """The sections of all analyses, and what to try next."""
    parts = {
        _adaptation: ("adaptation", "line"),
        relatedness_section: ("cosine", "transfer", "look_ahead"),
        conflict_section: ("conflict",),
        _step: ("descent",),
        _generalization: ("generalization",),
        _numerics: ("numerics",),
    }
    result = []
    for write, names in parts.items():
        section = write(results_by_name, context)
        section.notes += [f"Left out, {name}: {omitted[name]}" for name in names if name in omitted]
        result.append(section)
    advice = [Statement(line) for section in result for line in section.advice]
    nothing = "No finding is beyond its interval; more batches (batches=) narrow the intervals."
    return [*result, Section("What to try next", advice or [Statement(nothing)])]


def _adaptation(results_by_name: Mapping[str, list[Any]], context: Context) -> Section:
    section = Section("How it adapts")
    reports: list[analysis.AdaptationReport] = results_by_name.get("adaptation", [])
    if reports:
        gain = over_batches([report.scalars()["gain"] for report in reports])
        section.statements += [
            Statement("query loss before adaptation", over_batches([r.query[0].mean() for r in reports])),
            Statement("query loss after adaptation", over_batches([r.query[-1].mean() for r in reports])),
            Statement("decrease of the query loss by adaptation", gain),
        ]
        if context.inner and not above(gain, 0):
            section.advice.append(
                f"Adaptation does not decrease the query loss beyond the noise ({interval(gain)}): tune"
                " inner.lr and inner.steps with `metamtl search`."
            )
        alignment = over_batches([report.scalars()["alignment"] for report in reports])
        if math.isfinite(alignment.mean):
            text = "cosine of the gradients of support and query loss, before adaptation"
            section.statements.append(Statement(text, alignment))
            if context.inner and not above(alignment, 0):
                section.advice.append(
                    f"The gradients of support and query loss do not agree ({interval(alignment)}), so a"
                    " step on the support set does not help: use larger support sets, or train for longer."
                )
        section.pictures.append(Picture("Losses before and after each inner step", draw_stages(reports)))
        _movement(section, reports, context)
    lines: list[analysis.Line] = results_by_name.get("line", [])
    if lines:
        lowest = scalars(lines)["lowest/query"]
        text = "position of the lowest query loss on the line from before (0) to after (1) adaptation"
        section.statements.append(Statement(text, lowest))
        section.pictures.append(Picture("Loss on the line through both parameters", draw_line(lines)))
        if context.inner and above(lowest, 1):
            section.advice.append(
                f"The lowest query loss is beyond the adapted parameters (position {interval(lowest)}): try"
                " a larger inner.lr or more inner.steps."
            )
        if context.inner and below(lowest, 1):
            section.advice.append(
                f"The lowest query loss is before the adapted parameters (position {interval(lowest)}): try"
                " a smaller inner.lr or fewer inner.steps."
            )
    return section


def _movement(section: Section, reports: Sequence[analysis.AdaptationReport], context: Context) -> None:
    """How far each layer moves; the layers are the same for every batch."""
    moves = {
        layer: over_batches([r.relative[-1].mean(0)[r.layers.index(layer)] for r in reports])
        for layer in reports[0].layers
        if all(layer in r.layers for r in reports)
    }
    moves = {layer: value for layer, value in moves.items() if math.isfinite(value.mean)}
    if not moves:
        return
    for layer, value in list(moves.items())[:MOST_LAYERS]:
        section.statements.append(Statement(f"{layer} moves, relative to its norm", value))
    section.pictures.append(
        Picture("Distance that each layer moves, relative to its norm", draw_bars(moves))
    )
    most = max(moves.values(), key=lambda value: value.mean)
    small = [
        layer
        for layer, value in moves.items()
        if below(corrected(value, len(moves)), SMALL_PART * (most.mean - most.ci95))
    ]
    if small and context.inner:
        rest = [layer for layer in moves if layer not in small]
        section.advice.append(
            f"{', '.join(small)} moves less than {SMALL_PART:.0%} of the layer that moves most: adapting"
            f" only {', '.join(rest)} (adapts=) is cheaper; compare both."
        )


def _step(results_by_name: Mapping[str, list[Any]], context: Context) -> Section:
    section = Section("Does a step do what its gradient promises")
    results: list[analysis.Descent] = results_by_name.get("descent", [])
    if not results:
        return section
    values = scalars(results)
    texts = {
        "actual": "decrease of the objective in a gradient step, measured",
        "first": "predicted to first order",
        "second": "predicted to second order",
        "smoothness": "change of the gradient relative to the step (smoothness)",
        "largest": "largest eigenvalue of the Hessian in magnitude",
        "max_lr": "learning rate below which the descent lemma guarantees a decrease",
    }
    section.statements += [Statement(text, values[name]) for name, text in texts.items() if name in values]
    shown = {"measured": "actual", "first order": "first", "second order": "second"}
    decreases = {label: values[name] for label, name in shown.items() if name in values}
    section.pictures.append(Picture("Decrease of the objective in a gradient step", draw_bars(decreases)))
    section.notes.append(f"The learning rate of the step is {context.lr:g}.")
    allowed = values.get("max_lr")
    if not context.plain:
        section.notes.append(
            "The optimizer of the training takes other steps than plain gradient descent, so the learning"
            " rate that is allowed is not a limit for it."
        )
    elif allowed is not None and below(allowed, context.lr):
        section.advice.append(
            f"The learning rate {context.lr:g} is too large for the curvature (allowed:"
            f" {interval(allowed)}): lower optimizer.lr."
        )
    elif allowed is not None and above(allowed, 3 * context.lr):
        section.advice.append(
            f"The curvature allows a larger learning rate than {context.lr:g} ({interval(allowed)}): try a"
            " larger optimizer.lr."
        )
    return section


def _generalization(results_by_name: Mapping[str, list[Any]], context: Context) -> Section:
    section = Section("Does it generalize")
    results: list[analysis.Generalization] = results_by_name.get("generalization", [])
    if not results:
        return section
    values = scalars(results)
    texts = {
        "train": "query loss of training tasks",
        "test": "query loss of validation tasks",
        "gap": "gap between them",
        "parameter_norm": "norm of the parameters",
        "distance": "distance from the parameters before the training",
        "sharpness": "increase of the objective by a step of length 0.05 along its gradient (sharpness)",
        "largest": "largest eigenvalue of the Hessian on training tasks",
    }
    section.statements += [Statement(text, values[name]) for name, text in texts.items() if name in values]
    losses = {"training tasks": values["train"], "validation tasks": values["test"]}
    section.pictures.append(Picture("Query loss after adaptation", draw_bars(losses)))
    section.notes.append(
        "These are indicators, not guarantees; compare them between trainings of one model."
    )
    if above(values["gap"], 0):
        section.advice.append(
            f"Validation tasks have a higher loss than training tasks (gap {interval(values['gap'])}): more"
            " training tasks, weight decay (optimizer.weight_decay=) or early stopping (patience=)."
        )
    return section


def _numerics(results_by_name: Mapping[str, list[Any]], context: Context) -> Section:
    section = Section("Which precision is enough")
    results: list[analysis.Numerics] = results_by_name.get("numerics", [])
    if not results:
        return section
    cosines = {name.removeprefix("cosine/"): value for name, value in scalars(results).items()}
    for name, value in cosines.items():
        section.statements.append(Statement(f"{name}, cosine with the gradient in float64", value))
    if cosines:
        section.pictures.append(Picture("Cosine with the gradient in float64", draw_bars(cosines)))
    for name, reason in {n: r for result in results for n, r in result.failures.items()}.items():
        section.notes.append(f"{name} has no gradient: {reason}")
    enough = [name for name, value in cosines.items() if name != "float32" and above(value, 0.99)]
    noise = [name for name, value in cosines.items() if below(value, 0.9)]
    if enough:
        lowest = min((cosines[name] for name in enough), key=lambda value: value.mean)
        section.advice.append(
            f"The gradient in {', '.join(enough)} is that of float64 (lowest cosine {interval(lowest)}): a"
            " cheaper precision may be enough."
        )
    if noise:
        values = ", ".join(f"{name}: {interval(cosines[name])}" for name in noise)
        section.advice.append(f"Do not train in a precision whose gradient is noise (cosine {values}).")
    return section
