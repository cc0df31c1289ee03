"""Markdown tables for a `bench.json` of `experiments.bench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .markdown import table_lines

PEERS, OURS = ("learn2learn", "higher"), "metamtl"


def section(name: str, bench: dict[str, Any]) -> str:
    """All parts that the file has."""
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
    columns = {"learn2learn": ("learn2learn",), "higher": ("higher",), "torch.func": ("plain torch.func",)}
    columns |= {f"`{engine}`": (f"{OURS} {engine}",) for engine in ("Loop", "Vmap", "Compiled", "Auto")}
    columns["`Compiled`"] += (f"{OURS} Compiled, one task at a time",)
    measured = {name for results in bench["work"].values() for name in results}
    columns = {title: names for title, names in columns.items() if measured & set(names)}
    rows = []
    for work, results in bench["work"].items():
        best = min(row["seconds"] for name, row in results.items() if name.startswith(OURS))
        peers = [results[peer]["seconds"] for peer in PEERS if "seconds" in results[peer]]
        loop = [results["metamtl Loop"]["seconds"]] if "metamtl Loop" in results else []
        cells = [_ms([results[name] for name in names if name in results]) for names in columns.values()]
        compared = peers or loop
        speedup = f"{min(compared) / best:.1f}x" + ("" if peers else " `Loop`") if compared else "-"
        rows.append([work, *cells, speedup, f"{bench['floor'][work]['seconds'] * 1e3:.1f}"])
    head = ["one meta-gradient, ms", *columns, "speedup", "arithmetic floor"]
    compiled = "`Compiled`: the faster of all tasks at once and one task at a time. "
    notes = [
        ("" if "`Compiled`" not in columns else compiled)
        + "Speedup: the fastest engine of metamtl relative to the faster of learn2learn and higher, or to"
        " `Loop` if both fail. Floor: a matrix product with the same number of operations.",
        _agreement(bench["work"]),
    ]
    for work, results in bench["work"].items():
        failed = [f"{peer}: `{results[peer]['error']}`" for peer in PEERS if "error" in results[peer]]
        if failed:
            notes.append(f"{work}: {'; '.join(failed)}.")
    return _table(head, rows) + "\n\n" + "\n".join(notes)


def _ms(results: list[dict[str, Any]]) -> str:
    seconds = [row["seconds"] for row in results if "seconds" in row]
    return f"{min(seconds) * 1e3:.1f}" if seconds else "fails"


def _agreement(works: dict[str, Any]) -> str:
    """Largest differences from the reference gradient."""

    def largest(key: str, ours: bool) -> str:
        rows = [
            row
            for results in works.values()
            for name, row in results.items()
            if ours == name.startswith(OURS)
        ]
        return f"{max(row[key] for row in rows if key in row):.0e}"

    double, single = "relative_difference_float64", "relative_difference"
    return (
        "Largest relative difference from the reference gradient (`torch.autograd.grad`, one task at a"
        f" time): metamtl {largest(double, True)} in float64, {largest(single, True)} in float32; the"
        f" others {largest(double, False)} and {largest(single, False)}."
    )


def _recompute(bench: dict[str, Any]) -> str:
    ratios = [
        f"{result['ratio']:.2f} ({work}, `{engine}`)"
        for work, by_engine in bench["recompute"].items()
        for engine, result in by_engine.items()
    ]
    return f"Time of `Checkpointed()` relative to `Unrolled()`: {', '.join(ratios)}."


def _first_call(bench: dict[str, Any]) -> str:
    times = [f"{work} {seconds:.1f} s" for work, seconds in bench["first_call"].items()]
    return f"First step of `Compiled`, including compilation without a cache: {', '.join(times)}."


def _auto(bench: dict[str, Any]) -> str:
    parts = []
    for work, result in bench["auto"].items():
        seconds = [f"`{engine}` {value:.1f} s" for engine, value in result["seconds"].items()]
        parts.append(
            f"{result['steps']} steps of {work} {', '.join(seconds)}"
            f" (`Auto` {result['ratio']:.2f} times the best)"
        )
    return f"Time of the first steps, including compilation: {'; '.join(parts)}."


def _evaluate(bench: dict[str, Any]) -> str:
    result = bench["evaluate"]
    rows = dict(result["contenders"])
    baseline = rows.pop("learn2learn")["seconds"]
    times = [
        f"`{name.removeprefix('metamtl ')}` {row['seconds']:.1f} s ({baseline / row['seconds']:.1f}x)"
        for name, row in rows.items()
    ]
    first = rows["metamtl Compiled"]["first_call"]
    return (
        f"Evaluation of {result['tasks']} tasks with {result['steps']} steps: learn2learn {baseline:.1f} s,"
        f" {', '.join(times)}; the first call of `Compiled` takes {first:.0f} s."
    )


def _memory(bench: dict[str, Any]) -> str:
    """Peak memory, and its growth per step between the last two numbers of steps."""
    memory = bench["memory"]
    counts = list(next(iter(memory["peak"].values())))
    rows = []
    for contender, peaks in memory["peak"].items():
        cells = [f"{peaks[count]:.0f}" for count in counts]
        growth = (peaks[counts[-1]] - peaks[counts[-2]]) / (int(counts[-1]) - int(counts[-2]))
        rows.append([contender, *cells, f"{growth:.2f}"])
    table = _table(["peak MiB, inner steps:", *counts, "per additional step"], rows)
    return f"{table}\n\nThe parameters of the model take {memory['parameters']:.2f} MiB."


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(table_lines(head, rows))


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "work": _work,
    "recompute": _recompute,
    "first_call": _first_call,
    "auto": _auto,
    "evaluate": _evaluate,
    "memory": _memory,
}
