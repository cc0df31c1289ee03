"""One table of the trainings of a sweep: `metamtl collect outputs/multirun/2026-01-01_12-00-00`.

Options that differ between the trainings are columns; a row is the mean over seeds. Writes `collect.md` and
`collect.json` into the folder, and prints the table.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metamtl import Estimate

from ..tables.markdown import table_lines
from ..tables.report import read_json, signed, write_json, write_text
from .options import OptionError

Job = tuple[dict[str, str], dict[str, Any]]  # its overrides, and its result


def collect(folder: Path, metric: str | None = None) -> dict[str, Any]:
    """The table of all trainings in the folder.

    Args:
        folder: of a multirun, or any folder with folders of trainings.
        metric: if None, the one by which the trainings selected their weights.

    Raises:
        OptionError: no training is finished, a file is damaged, or the trainings have no common metric.
    """
    if not folder.is_dir():
        raise OptionError(f"{folder} is not a folder; pass the output folder of a multirun.")
    paths = _jobs(folder)
    jobs: list[Job] = []
    unfinished, diverged = [], []
    for path in paths:
        job = path.parents[1]
        if not (job / "result.json").is_file():
            unfinished.append(str(job.relative_to(folder)))
            continue
        result = read_json(job / "result.json", "config")
        if "diverged" in result:
            diverged.append(str(job.relative_to(folder)))
            continue
        jobs.append((_overrides(path), result))
    if not jobs:
        raise OptionError(
            f"{folder} has no finished training: no folder with .hydra/overrides.yaml and result.json in it"
            f" ({len(unfinished)} unfinished, {len(diverged)} diverged)."
        )
    metric = metric or _common(jobs, "metric")
    names = sorted({name for given, _ in jobs for name in given} - {"seed"})
    varied = [name for name in names if len({given.get(name) for given, _ in jobs}) > 1]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for given, result in jobs:
        groups.setdefault(tuple(given.get(name, "default") for name in varied), []).append(result)
    rows = []
    for values, results in groups.items():
        seeds = [result["config"].get("seed") for result in results]
        if len(set(seeds)) < len(seeds):
            raise OptionError(
                f"{folder}: seed {max(seeds, key=seeds.count)} is there twice for"
                f" {dict(zip(varied, values))}; collect one sweep at a time."
            )
        row: dict[str, Any] = {"options": dict(zip(varied, values)), "seeds": seeds}
        for split in ("validation", "test"):
            row[split] = _over_seeds([_figure(result, split, metric, folder) for result in results])
        rows.append(row)
    return {
        "metric": metric,
        "varied": varied,
        "interval": "95 %, Student t: over seeds, or, with one seed, over tasks",
        "rows": rows,
        "unfinished": unfinished,
        "diverged": diverged,
    }


def _jobs(folder: Path) -> list[Path]:
    """The overrides of all trainings in the folder.

    Not with `Path.rglob`, which fails if a training that still runs deletes a temporary folder meanwhile.
    """
    folders = (Path(parent) for parent, _, names in os.walk(folder) if "overrides.yaml" in names)
    return sorted(path / "overrides.yaml" for path in folders if path.name == ".hydra")


def _overrides(path: Path) -> dict[str, str]:
    try:
        lines = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(lines, list):
            raise TypeError("expected a list")
        overrides = OverridesParser.create().parse_overrides(lines)
    except Exception as error:  # YAML, and the parser of overrides, have errors of their own
        raise OptionError(f"{path} is truncated or altered ({error}).") from error
    return {o.key_or_group: str(o.value()) for o in overrides if not o.is_delete()}


def _common(jobs: list[Job], name: str) -> str:
    values = sorted({str(result["config"].get(name)) for _, result in jobs})
    if len(values) > 1:
        raise OptionError(
            f"the trainings have different metrics, {', '.join(values)}; choose one: --metric=..."
        )
    return values[0]


def _figure(result: dict[str, Any], split: str, metric: str, folder: Path) -> dict[str, float]:
    try:
        found = result[split][metric]
        ci95 = math.nan if found["ci95"] is None else float(found["ci95"])
        return {"mean": float(found["mean"]), "ci95": ci95}
    except (KeyError, TypeError, ValueError) as error:
        known = ", ".join(result[split]) if isinstance(result.get(split), dict) else "nothing"
        raise OptionError(
            f"{folder}: a result has no {split} figure of {metric}; it has {known}."
        ) from error


def _over_seeds(figures: list[dict[str, float]]) -> dict[str, Any]:
    if len(figures) == 1:
        return figures[0]
    found = Estimate.of(torch.tensor([figure["mean"] for figure in figures], dtype=torch.float64))
    return {"mean": found.mean, "ci95": found.ci95}


def markdown(table: dict[str, Any]) -> str:
    """The table in Markdown."""
    heads = [*table["varied"], f"validation {table['metric']}", f"test {table['metric']}", "seeds"]
    rows = []
    for row in table["rows"]:
        figures = [signed(row[split], digits=4, plus=False) for split in ("validation", "test")]
        seeds = ", ".join(map(str, row["seeds"]))
        rows.append([*row["options"].values(), *figures, seeds])
    lines = [*table_lines(heads, rows), "", f"Mean over seeds; interval: {table['interval']}."]
    for kind in ("unfinished", "diverged"):
        if table[kind]:
            lines.append(f"Without {len(table[kind])} {kind}: {', '.join(table[kind])}.")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="metamtl collect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the output folder of a multirun")
    parser.add_argument("--metric", help="a metric of the trainings; default: the one they selected by")
    args = parser.parse_args(arguments)
    try:
        table = collect(args.folder, args.metric)
    except OptionError as error:
        print(f"metamtl collect: {error}", file=sys.stderr)
        return 2
    write_json(args.folder / "collect.json", table)
    write_text(args.folder / "collect.md", markdown(table))
    print(markdown(table), end="")
    return 0
