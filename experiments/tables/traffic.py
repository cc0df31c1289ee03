"""The bytes that every process sends in one step of `engines.Sharded`, and their table.

An all-reduce of n numbers sends `2 n (W - 1) / W` of them on a ring of W processes, an all-gather of n
numbers of each process `n (W - 1)`, and an all-to-all of n numbers `n (W - 1) / W`. Left out are a few
numbers for each task and each parameter tensor.
"""

from __future__ import annotations

from typing import NamedTuple

from .markdown import table_lines

DOUBLE = 8  # bytes of a number of a Gramian


class Step(NamedTuple):
    """One step.

    Attributes:
        tasks: T.
        shared: number of shared parameters n.
        heads: number of all other parameters h.
        features: number of features of one process F, the size of the output of the layer.
        processes: W.
        size: bytes of a number b.
    """

    tasks: int
    shared: int
    heads: int = 0
    features: int = 0
    processes: int = 1
    size: int = 4

    def all_reduce(self, numbers: int) -> float:
        return 2 * numbers * (self.processes - 1) / self.processes

    def all_gather(self, numbers: int) -> float:
        return numbers * (self.processes - 1)

    def all_to_all(self, numbers: int) -> float:
        return numbers * (self.processes - 1) / self.processes


def sent(step: Step, layout: str, reads: str) -> float:
    """The bytes that a process sends in one step.

    Args:
        layout: "tasks" (a meta-batch), "examples" (named tasks, at parameters) or "features" (named tasks,
            at a layer).
        reads: what the aggregator reads: "losses", "gramian", or "rows" (also for "columns").
    """
    everything = step.size * step.all_reduce(step.shared + step.heads)
    if reads == "losses":
        return everything
    gramian = DOUBLE * step.all_reduce(step.tasks**2)
    rows = -(-step.tasks // step.processes) if layout == "tasks" else step.tasks
    if layout == "features":
        matrix = 0.0 if reads == "gramian" else step.size * step.all_gather(step.tasks * step.features)
        return everything + (gramian if reads == "gramian" else matrix)
    if reads == "gramian":
        return everything + gramian + step.size * step.all_to_all(rows * step.shared)
    gathered = (
        step.all_gather(rows * step.shared) if layout == "tasks" else step.all_reduce(rows * step.shared)
    )
    return step.size * (gathered + step.all_reduce(step.heads))


LAYOUTS = {
    "tasks": "meta-batch",
    "examples": "named tasks, at parameters",
    "features": "named tasks, at a layer",
}


def table() -> str:
    """Markdown table of two models on 8 and 64 processes."""
    works = {
        "meta-batch": Step(tasks=64, shared=10_000_000),
        "named": Step(tasks=8, shared=25_000_000, heads=100_000, features=32 * 2048),
    }
    head = ["tasks", "reads"]
    head += [text for n in (8, 64) for text in (f"{n} processes", "relative to losses")]
    rows = []
    for layout, words in LAYOUTS.items():
        work = works["meta-batch" if layout == "tasks" else "named"]
        for reads in ("losses", "gramian", "rows"):
            cells = [words, reads]
            for processes in (8, 64):
                step = work._replace(processes=processes)
                count = sent(step, layout, reads)
                cells += [f"{count / 1e6:,.1f} MB", f"{count / sent(step, layout, 'losses'):.2f}"]
            rows.append(cells)
    meta, named = works["meta-batch"], works["named"]
    return "\n".join(
        [
            *table_lines(head, rows),
            "",
            f"Meta-batch: T = {meta.tasks}, n = {meta.shared:,}. Named tasks: T = {named.tasks},"
            f" n = {named.shared:,}, h = {named.heads:,}, F = {named.features:,}\n(32 examples with 2,048"
            f" features in each process). b = {meta.size}.",
        ]
    )
