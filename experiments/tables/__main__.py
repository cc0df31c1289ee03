"""Generate the tables of docs/results.md and docs/distributed.md: `python -m experiments.tables`.

Also writes the Markdown file beside every recorded table again, so that all have the same form. With
`--check`, only compare. The block between two markers has one table per `table.json` of
`experiments.compare` and `experiments.grid`, and per `multitask.json`, `group.json`, `curves.json`,
`new_task.json`, `bench.json`, `cost.json`, `analysis_cost.json`, `scaling.json`, `loading.json`,
`toy.json` and `endurance.json`, and one table for all `result.json` of `experiments.train`. The table of
docs/distributed.md is that of `tables.traffic`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from . import analysis_cost as analysis_cost_table
from . import bench as bench_table
from . import compare as compare_table
from . import cost as cost_table
from . import curves as curves_table
from . import endurance as endurance_table
from . import grid as grid_table
from . import group as group_table
from . import loading as loading_table
from . import multitask as multitask_table
from . import new_task as new_task_table
from . import scaling as scaling_table
from . import toy as toy_table
from . import traffic
from . import train as train_table
from .report import read_json, write_text

HERE = Path(__file__).resolve().parents[1]
DOCS, RESULTS = HERE.parent / "docs", HERE / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
LOCAL = ("data_dir=", "device=", "resume=", "checkpoint.")  # of the run, not of the experiment


def block(results: Path = RESULTS) -> str:
    """The text between the markers."""
    paths = sorted(results.glob("*/table.json"))
    parts = [_section(path, read_json(path)) for path in paths]
    runs = sorted(results.glob("*/result.json"))
    if runs:
        parts.append(train_table.section({path.parent.name: read_json(path) for path in runs}))
    for path in sorted(results.glob("*/multitask.json")):
        table = read_json(path)
        parts.append(multitask_table.section(path.parent.name, _kept(table), table))
    for path in sorted(results.glob("*/group.json")):
        table = read_json(path)
        parts.append(group_table.section(path.parent.name, _kept(table), table))
    for path in sorted(results.glob("*/curves.json")):
        table = read_json(path)
        parts.append(curves_table.section(path.parent.name, _kept(table), table))
    for path in sorted(results.glob("*/new_task.json")):
        table = read_json(path)
        parts.append(f"### {path.parent.name}\n{new_task_table.markdown(table).strip()}")
    for path in sorted(results.glob("*/bench.json")):
        parts.append(bench_table.section(path.parent.name, read_json(path)))
    for name, section in (
        ("cost", cost_table.section),
        ("analysis_cost", analysis_cost_table.section),
        ("scaling", scaling_table.section),
        ("loading", loading_table.section),
        ("toy", toy_table.section),
        ("endurance", endurance_table.section),
    ):
        path = results / name / f"{name}.json"
        if path.is_file():
            parts.append(section(read_json(path)))
    return "\n\n".join(parts) or "None yet."


def beside(results: Path = RESULTS) -> dict[Path, str]:
    """The Markdown file beside every recorded table, and its text."""
    texts = {}
    for path in sorted(results.glob("*/table.json")):
        table = read_json(path)
        texts[path] = (grid_table if "against" in table else compare_table).markdown(table)
    for stem, module in (
        ("multitask", multitask_table),
        ("new_task", new_task_table),
        ("curves", curves_table),
        ("group", group_table),
    ):
        for path in sorted(results.glob(f"*/{stem}.json")):
            texts[path] = module.markdown(read_json(path))
    return {path.with_suffix(".md"): text for path, text in texts.items()}


def _section(path: Path, table: dict[str, Any]) -> str:
    name = path.parent.name
    if "against" in table:
        return _grid(name, table)
    lines = [f"### {name}", "```bash", _command(table), "```", "", compare_table.markdown(table).strip()]
    if path.with_name("figure.png").is_file():
        lines += ["", f"![{name}](../experiments/results/{name}/figure.png)"]
    return "\n".join(lines)


def _grid(name: str, table: dict[str, Any]) -> str:
    """A grid of aggregators: the verdict and the signs of each measure; table.md has all numbers."""
    lines = [
        f"### {name}",
        "```bash",
        shlex.join(["python", "-m", "experiments.grid", *_kept(table)]),
        "```",
    ]
    for measure in table["experiment"]["measures"]:
        lines += ["", *grid_table.short(table, measure)]
    link = f"[All numbers](../experiments/results/{name}/table.md)."
    return "\n".join([*lines, "", f"{grid_table.footer(table)} {link}"])


def _kept(table: dict[str, Any]) -> list[str]:
    """The overrides that are part of the experiment."""
    return [text for text in table["experiment"]["overrides"] if not text.lstrip("+").startswith(LOCAL)]


def _command(table: dict[str, Any]) -> str:
    """The command that reproduces this table."""
    recipes = [row["recipe"] for row in table["rows"] if not row["recipe"].startswith("trivial")]
    recipes += table.get("diverged", ())
    lists = [f"recipes=[{','.join(recipes)}]", f"seeds=[{','.join(map(str, table['seeds']))}]"]
    return shlex.join(["python", "-m", "experiments.compare", *_kept(table), *lists])


def rewritten(text: str, content: str) -> str:
    """Replace the content between the markers in `text`.

    Raises:
        ValueError: the markers are missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no place for results; add a line {BEGIN} and a line {END}.")
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write the tables of docs/results.md and docs/distributed.md."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page differs")
    only_check = parser.parse_args(arguments).check
    texts = beside()
    for page, content in {"results.md": block(), "distributed.md": traffic.table()}.items():
        texts[DOCS / page] = rewritten((DOCS / page).read_text(encoding="utf-8"), content)
    status = 0
    for path, new in texts.items():
        if path.read_text(encoding="utf-8") == new:
            continue
        if only_check:
            name = path.relative_to(HERE.parent)
            print(
                f"{name} differs from what is computed; run `python -m experiments.tables`", file=sys.stderr
            )
            status = 1
        else:
            write_text(path, new)
    return status


if __name__ == "__main__":
    sys.exit(main())
