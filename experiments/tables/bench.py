"""What a reader needs of a `bench.json` of `experiments.bench`, as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PEERS, OURS = ("learn2learn", "higher"), "metamtl"


def section(name: str, bench: dict[str, Any]) -> str:
    """Every part that the file has."""
    parts = [f"### {name}"]
    for key, write in PARTS.items():
        if key in bench:
            parts.append(write(bench))
    hardware = bench["hardware"]
    parts.append(
        f"{hardware['device']}, {hardware['threads']} threads; torch {bench['versions']['torch']}."
    )
    return "\n\n".join(parts)


def _work(bench: dict[str, Any]) -> str:
    head = ["one meta-gradient, ms", "learn2learn", "higher", "torch.func", "`Loop`", "`Vmap`"]
    head += ["`Compiled`", "`Auto`", "the best is", "arithmetic floor"]
    rows = []
    for work, found in bench["work"].items():
        best = min(row["seconds"] for name, row in found.items() if name.startswith(OURS))
        peers = [found[peer]["seconds"] for peer in PEERS if "seconds" in found[peer]]
        against = min(peers) if peers else found["metamtl Loop"]["seconds"]
        one, many = found["metamtl Compiled, one task at a time"], found["metamtl Compiled"]
        shown = [*(found[name] for name in (*PEERS, "plain torch.func", "metamtl Loop", "metamtl Vmap"))]
        shown += [min(one, many, key=lambda row: row["seconds"]), found["metamtl Auto"]]
        times = f"{against / best:.1f}x" + ("" if peers else " `Loop`")
        rows.append([work, *map(_ms, shown), times, f"{bench['floor'][work]['seconds'] * 1e3:.1f}"])
    notes = [
        "`Compiled`: the better of all tasks at once and one at a time. The best of metamtl's engines is so"
        " many times as fast as the faster peer. The floor is a matrix product with as many operations.",
        _agreement(bench["work"]),
    ]
    for work, found in bench["work"].items():
        failed = [f"{peer}: `{found[peer]['error']}`" for peer in PEERS if "error" in found[peer]]
        if failed:
            notes.append(f"{work}: {'; '.join(failed)}.")
    return _table(head, rows) + "\n\n" + "\n".join(notes)


def _ms(row: dict[str, Any]) -> str:
    return f"{row['seconds'] * 1e3:.1f}" if "seconds" in row else "fails"


def _agreement(works: dict[str, Any]) -> str:
    """The largest differences from the plain unroll."""

    def largest(key: str, ours: bool) -> str:
        rows = [
            row for found in works.values() for name, row in found.items() if ours == name.startswith(OURS)
        ]
        return f"{max(row[key] for row in rows if key in row):.0e}"

    double, single = "relative_difference_float64", "relative_difference"
    return (
        "Largest relative difference of a gradient from the plain unroll's, one task at a time:"
        f" metamtl {largest(double, True)} in float64, {largest(single, True)} in float32; the others"
        f" {largest(double, False)} and {largest(single, False)}."
    )


def _recompute(bench: dict[str, Any]) -> str:
    found = [
        f"{found['ratio']:.2f} ({work}, `{engine}`)"
        for work, by_engine in bench["recompute"].items()
        for engine, found in by_engine.items()
    ]
    return f"Time of `Checkpointed()` in units of `Unrolled()`: {', '.join(found)}."


def _first_call(bench: dict[str, Any]) -> str:
    found = [f"{work} {seconds:.1f} s" for work, seconds in bench["first_call"].items()]
    return f"First step of `Compiled`, compiling included, nothing cached: {', '.join(found)}."


def _auto(bench: dict[str, Any]) -> str:
    parts = []
    for work, found in bench["auto"].items():
        seconds = [f"`{engine}` {taken:.1f} s" for engine, taken in found["seconds"].items()]
        parts.append(
            f"{found['steps']} steps of {work} {', '.join(seconds)}"
            f" (`Auto` {found['ratio']:.2f} times the best)"
        )
    return f"From the first step on, compiling included: {'; '.join(parts)}."


def _evaluate(bench: dict[str, Any]) -> str:
    found = bench["evaluate"]
    rows = dict(found["contenders"])
    theirs = rows.pop("learn2learn")["seconds"]
    ours = [
        f"`{name.removeprefix('metamtl ')}` {row['seconds']:.1f} s ({theirs / row['seconds']:.1f}x)"
        for name, row in rows.items()
    ]
    first = rows["metamtl Compiled"]["first_call"]
    return (
        f"Testing {found['tasks']} tasks with {found['steps']} steps: learn2learn {theirs:.1f} s,"
        f" {', '.join(ours)}; the first time `Compiled` takes {first:.0f} s."
    )


def _memory(bench: dict[str, Any]) -> str:
    """Peaks, and how they grow between the last two numbers of steps."""
    found = bench["memory"]
    counts = list(next(iter(found["peak"].values())))
    rows = []
    for contender, peaks in found["peak"].items():
        cells = [f"{peaks[count]:.0f}" for count in counts]
        growth = (peaks[counts[-1]] - peaks[counts[-2]]) / (int(counts[-1]) - int(counts[-2]))
        rows.append([contender, *cells, f"{growth:.2f}"])
    table = _table(["peak MiB, inner steps:", *counts, "each further step"], rows)
    return f"{table}\n\nThe net's parameters take {found['parameters']:.2f} MiB."


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "work": _work,
    "recompute": _recompute,
    "first_call": _first_call,
    "auto": _auto,
    "evaluate": _evaluate,
    "memory": _memory,
}
