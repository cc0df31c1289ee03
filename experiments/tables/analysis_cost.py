"""Markdown table for an `analysis_cost.json` of `experiments.analysis_cost`."""

from __future__ import annotations

from typing import Any

from .markdown import table_lines

MATRICES = {
    "cosine": "`cosine(gradients)`",
    "transfer": "`transfer(gradients)`",
    "look_ahead": "`look_ahead`",
    "linearized": "`linearized`",
    "mixed_second_derivatives": "`mixed_second_derivatives`",
}
RECIPES = {"joint": "none", "maml": "MAML, one step"}


def section(cost: dict[str, Any]) -> str:
    """Passes and seconds of every matrix, and the cost of logging."""
    head = ["adaptation", "matrix", "s", "calls of autograd", "Hessian-vector products", "forward mode"]
    rows = []
    for recipe, matrices in cost["recipes"].items():
        for name, row in matrices.items():
            passes = [
                f"{row['passes'][kind]:g}" for kind in ("backward", "hessian_products", "forward_mode")
            ]
            rows.append([RECIPES[recipe], MATRICES[name], f"{row['seconds']:.2f}", *passes])
    log, hardware = cost["logging"], cost["hardware"]
    plain, logged = log["seconds"]
    return "\n".join(
        [
            f"### analysis_cost: the relatedness of {cost['tasks']} tasks on Conv-4",
            *table_lines(head, rows),
            "",
            f"Seconds are medians (rounds: {cost['rounds']}), the gradients included; calls, products and"
            " passes are those for each task. An inner step is a call of autograd, so a matrix that"
            f" evaluates adapted models has more. `analyse.every={log['every']}` in a training of"
            f" {log['steps']:,} steps on sinusoids"
            f" with MAML: {plain * 1e3:.1f} ms for a step, {logged * 1e3:.1f} ms for one that is logged"
            f" (medians), {log['slowdown']:+.1%} of the training."
            f" {hardware['device']}, {hardware['threads']} threads; torch"
            f" {cost['versions']['torch']}.",
        ]
    )
