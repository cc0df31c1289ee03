"""Table of a grid of aggregators: paired differences, their signs, and a verdict."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from metamtl import Estimate

from ..utils.runs import Run
from ..utils.search import label
from .markdown import table_lines
from .report import environment, sign

SPLITS = {"mean": "mean", "worst_tenth": "worst_decile"}
Key = tuple[str, int, str]  # adapted parameters ("all", or prefixes), number of inner steps, and aggregator


def summary(
    cfg: DictConfig, overrides: list[str], cells: dict[Key, dict[str, Any]], higher: dict[str, bool]
) -> dict[str, Any]:
    """Build the table: the cells, their differences from the reference, and the verdicts."""
    rows = []
    for (adapts, steps, name), entry in cells.items():
        runs = {seed: result for seed, result in entry["runs"].items() if "diverged" not in result}
        reference = cells[(adapts, steps, cfg.against)]["runs"]
        row: dict[str, Any] = {
            "adapts": adapts,
            "inner_steps": steps,
            "aggregator": name,
            "rates": entry["rates"],
            "diverged": [seed for seed in entry["runs"] if seed not in runs],
            "gradient_evaluations": max((r["gradient_evaluations"] for r in runs.values()), default=None),
            "values": {},
            "differences": {},
        }
        for measure, split in product(higher, SPLITS):
            values = {seed: result["test"][measure][SPLITS[split]] for seed, result in runs.items()}
            base = {
                seed: result["test"][measure][SPLITS[split]]
                for seed, result in reference.items()
                if "diverged" not in result
            }
            pairs = {
                seed: difference(value, base[seed], measure, higher[measure])
                for seed, value in values.items()
                if seed in base
            }
            row["values"].setdefault(measure, {})[split] = _over_seeds(values)
            row["differences"].setdefault(measure, {})[split] = _over_seeds(pairs)
        rows.append(row)
    table = {
        "experiment": {"overrides": overrides, "metric": cfg.metric, "measures": list(higher)},
        **environment(cfg.device),
        "seeds": list(cfg.seeds),
        "against": cfg.against,
        "steps": cfg.steps,
        "tuned": OmegaConf.to_container(cfg.tune) if cfg.tune else {},
        "gain": OmegaConf.to_container(cfg.gain),
        "interval": "95 %, Student t over seeds, of differences between runs of one seed",
        "batchnorm": next(
            (r["batchnorm"] for e in cells.values() for r in e["runs"].values() if "batchnorm" in r), None
        ),
        "test_tasks": cfg.test.tasks,
        "rows": rows,
        "pooled": _pooled(rows, higher, cfg.against),
    }
    return {**table, "verdict": {measure: verdict(table, measure) for measure in higher}}


def difference(value: float, base: float, measure: str, higher_is_better: bool) -> float:
    """Improvement over the reference: accuracy in points, other measures in percent of the reference."""
    gap = 100 * (value - base) if measure == "accuracy" else 100 * (value / base - 1)
    return gap if higher_is_better else -gap


def _over_seeds(values: dict[int, float]) -> dict[str, Any]:
    if not values:
        return {"mean": None, "ci95": None, "seeds": {}}
    estimate = Estimate.of(torch.tensor(list(values.values()), dtype=torch.float64))
    return {
        "mean": estimate.mean,
        "ci95": estimate.ci95 if estimate.n > 1 else None,
        "seeds": {str(seed): value for seed, value in values.items()},
    }


def _pooled(rows: list[Run], higher: dict[str, bool], reference: str) -> list[Run]:
    """Mean difference of the cells of each aggregator, per seed."""
    pooled = []
    for name in dict.fromkeys(row["aggregator"] for row in rows):
        cells = [row["differences"] for row in rows if row["aggregator"] == name]
        entry: Run = {"aggregator": name, "cells": len(cells), "differences": {}}
        for measure, split in product(higher, SPLITS):
            values = [cell[measure][split]["seeds"] for cell in cells]
            seeds = [seed for seed in values[0] if all(seed in by_seed for by_seed in values)]
            means = {seed: sum(by_seed[seed] for by_seed in values) / len(values) for seed in seeds}
            entry["differences"].setdefault(measure, {})[split] = _over_seeds(means)
        if name != reference:
            pooled.append(entry)
    return pooled


def gains(found: dict[str, dict[str, Any]], gain: dict[str, float]) -> bool:
    """Return whether the worst tenth improves significantly and both changes are at least `gain`."""
    worst, mean = found["worst_tenth"], found["mean"]
    return sign(worst) == "+" and worst["mean"] >= gain["worst_tenth"] and mean["mean"] >= gain["mean"]


def verdict(table: dict[str, Any], measure: str) -> str:
    """Verdict in words: the aggregators that improve the worst tenth by `gain`, and the best one."""
    unit = "points" if measure == "accuracy" else "%"
    gain = table["gain"]
    rows = [row for row in table["rows"] if row["aggregator"] != table["against"]]
    rows = [row for row in rows if row["differences"][measure]["worst_tenth"]["mean"] is not None]
    rows = [row for row in rows if row["differences"][measure]["worst_tenth"]["ci95"] is not None]
    pooled = [row for row in table["pooled"] if row["cells"] > 1]
    pooled = [row for row in pooled if row["differences"][measure]["worst_tenth"]["ci95"] is not None]
    criterion = (
        f"{measure}: worst tenth better than {table['against']}'s by {gain['worst_tenth']:g} {unit} or"
        f" more, beyond the noise of the seeds, with a mean at most {-gain['mean']:g} worse:"
    )
    if not rows:
        return f"{criterion} not known, because an interval needs two seeds."

    def words(row: Run) -> str:
        cell = f", {row['adapts']}, K={row['inner_steps']}" if "adapts" in row else ", all cells"
        worst, mean = (row["differences"][measure][split] for split in ("worst_tenth", "mean"))
        return f"{row['aggregator']}{cell}: {_pm(worst)}, mean {_pm(mean)}"

    parts = []
    for what, group in (("cells", rows), ("aggregators over all cells", pooled)):
        if not group:
            continue
        winners = [row for row in group if gains(row["differences"][measure], gain)]
        best = max(winners or group, key=lambda row: row["differences"][measure]["worst_tenth"]["mean"])
        parts.append(f"{len(winners) or 'none'} of {len(group)} {what} (the most: {words(best)})")
    chance = f"By chance alone {0.025 * len(rows):.1f} of the cells' intervals would be above zero."
    return f"{criterion} {', '.join(parts)}. {chance}"


def _pm(found: dict[str, Any], form: str = "+.1f") -> str:
    if found["mean"] is None:
        return "diverged"
    mean = f"{found['mean']:{form}}"
    return mean if found["ci95"] is None else f"{mean} ± {found['ci95']:{form.lstrip('+')}}"


def markdown(table: dict[str, Any]) -> str:
    """Complete table in Markdown: verdict, signs, all differences, and the setup."""
    lines = []
    for measure in table["experiment"]["measures"]:
        lines += ["", *short(table, measure), "", *_lines(table, measure)]
    return "\n".join([*lines, "", footer(table)]).strip() + "\n"


def short(table: dict[str, Any], measure: str) -> list[str]:
    """The verdict, and a table with the signs of all cells."""
    unit = "points" if measure == "accuracy" else "%"
    places = list(dict.fromkeys((row["adapts"], row["inner_steps"]) for row in table["rows"]))
    places.sort(key=lambda place: (place[0] == "all", place))
    head = [f"{measure}: worst tenth / mean", *(f"{adapts}, K={steps}" for adapts, steps in places)]
    head += [f"all cells: worst tenth, {unit}", f"mean, {unit}"]
    rows = []
    for pooled in table["pooled"]:
        differences = {
            (row["adapts"], row["inner_steps"]): row["differences"][measure]
            for row in table["rows"]
            if row["aggregator"] == pooled["aggregator"]
        }
        cells = [
            " / ".join(sign(differences[place][split]) for split in ("worst_tenth", "mean"))
            if place in differences
            else ""
            for place in places
        ]
        cells += [_pm(pooled["differences"][measure][split]) for split in ("worst_tenth", "mean")]
        rows.append([pooled["aggregator"], *cells])
    return [table["verdict"][measure], "", *table_lines(head, rows)]


def footer(table: dict[str, Any]) -> str:
    """Return the line that says how the results were measured."""
    hardware, against = table["hardware"], table["against"]
    rates = "; ".join(f"{name} of {values}" for name, values in table["tuned"].items())
    return (
        f"Differences from {against}, positive if better; +, -: the interval excludes zero; =: within the"
        f" noise of the seeds. Interval: {table['interval']}; seeds {table['seeds']}; {table['test_tasks']}"
        f" test tasks, used once; {table['steps']} steps; selected on validation tasks: weights, steps of"
        f" adaptation and, for every cell with the first seed, {rates or 'nothing else'}. BatchNorm:"
        f" {table['batchnorm']}. {hardware['device']}, {hardware['threads']} threads; torch"
        f" {table['versions']['torch']}."
    )


def _lines(table: dict[str, Any], measure: str) -> list[str]:
    accuracy = measure == "accuracy"
    unit, factor = ("accuracy, %", 100) if accuracy else (measure, 1)
    gap_unit = "points" if accuracy else "%"
    head = ["adapts", "K", "aggregator", unit, "worst tenth", f"mean, difference ({gap_unit})", ""]
    head += [f"worst tenth, difference ({gap_unit})", "", "rates"]
    rows = []
    for row in sorted(table["rows"], key=lambda row: (row["adapts"] == "all", row["inner_steps"])):
        values, gaps = row["values"][measure], row["differences"][measure]
        cells = [_scaled(values[split], factor) for split in SPLITS]
        if row["aggregator"] == table["against"]:
            cells += [""] * 4
        else:
            cells += [text for split in SPLITS for text in (_pm(gaps[split]), sign(gaps[split]))]
        rates = label(row["rates"]) + (f" (diverged: seeds {row['diverged']})" if row["diverged"] else "")
        rows.append([row["adapts"], row["inner_steps"], row["aggregator"], *cells, rates])
    return table_lines(head, rows)


def _scaled(found: dict[str, Any], factor: float) -> str:
    scaled = {k: None if found[k] is None else factor * found[k] for k in ("mean", "ci95")}
    return _pm(scaled, ".1f" if factor == 100 else ".4g")
