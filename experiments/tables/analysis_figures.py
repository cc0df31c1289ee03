"""Figures of means over batches with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metamtl import Estimate, analysis
from metamtl.analysis.result import axes, bars

from ..utils.batches import over_batches


def draw_bars(values: Mapping[str, Estimate]) -> Any:
    """One bar with its interval for each name."""
    means = [value.mean for value in values.values()]
    errors = [value.ci95 if math.isfinite(value.ci95) else 0.0 for value in values.values()]
    figure = bars(None, tuple(values), means, "", errors)
    figure.set_figheight(min(1.2 + 0.28 * len(values), 12.0))
    return figure


def _band(ax: Any, x: Any, rows: Sequence[Tensor], label: str, style: str) -> None:
    """The mean over batches `[B, P]` and its interval."""
    values = [over_batches(list(column)) for column in torch.stack(list(rows)).T]
    mean, ci95 = (torch.tensor([getattr(v, name) for v in values]) for name in ("mean", "ci95"))
    (drawn,) = ax.plot(x, mean, style, label=label)
    ax.fill_between(x, mean - ci95, mean + ci95, alpha=0.2, color=drawn.get_color())


def draw_stages(reports: Sequence[analysis.AdaptationReport]) -> Any:
    """The losses before and after each inner step."""
    ax = axes()
    x = range(len(reports[0].query))
    for name, style in (("support", "o--"), ("query", "o-")):
        _band(ax, x, [getattr(report, name).mean(1) for report in reports], name, style)
    ax.set_xlabel("inner steps")
    ax.set_ylabel("loss")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax.figure


def draw_line(lines: Sequence[analysis.Line]) -> Any:
    """The losses on the line through the parameters before and after adaptation."""
    ax = axes()
    for name, style in (("support", "--"), ("query", "-")):
        rows = [getattr(line, name).mean(0) for line in lines]
        _band(ax, lines[0].positions, rows, name, style)
    ax.set_xlabel("0: before adaptation, 1: after")
    ax.set_ylabel("loss")
    ax.legend()
    return ax.figure
