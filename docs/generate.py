"""Parts of the documentation that are computed: `python docs/generate.py` writes those that are files.

These are docs/notebooks/, docs/llms.txt, the table of formulas in docs/aggregators.md, and the tables of
contents of long pages. The other tables are inserted when the site is built.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from page_contents import llms_txt, pages, with_contents
from to_notebook import notebooks

from experiments.tables.markdown import table_lines
from metamtl import aggregators

PAPER = re.compile(r"https://[^\s>)\]]+")
ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "docs" / "aggregators.md"
BEGIN, END = "<!-- formulas:begin -->\n", "<!-- formulas:end -->"
TESTS = ROOT / "tests" / "laws" / "test_aggregator_claims.py"
# For arguments without a default, with three tasks.
ARGUMENTS = {
    "alpha": 1.0,
    "c": 0.5,
    "calls_per_epoch": 10,
    "lambda_": 1.0,
    "mu": 0.1,
    "n_byzantine": 1,
    "num_tasks": 3,
    "rate": 0.1,
    "shape": 3,
    "theta": 1.0,
    "trim_number": 1,
    "weights": [1.0, 1.0, 1.0],
}
LAWS = {
    "order": "order",
    "turn": "rotation",
    "scale": "scale",
    "span": "span",
    "hull": "hull",
    "agree": "no conflict",
    "free": "no conflict (independent)",
    "linear": "linear",
}


def claims() -> dict[str, str]:
    """The laws that the tests check, for each aggregator."""
    for node in ast.parse(TESTS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "CLAIMS" and node.value:
            return dict(ast.literal_eval(node.value))
    raise LookupError(f"{TESTS} has no table CLAIMS.")


def formula(name: str) -> str:
    """The paragraph of an aggregator's docstring that starts with "Formula:"."""
    docstring = inspect.cleandoc(getattr(aggregators, name).__doc__ or "")
    paragraphs = [part for part in docstring.split("\n\n") if part.startswith("Formula: ")]
    if len(paragraphs) != 1:
        number = len(paragraphs)
        raise LookupError(f"the docstring of {name} has {number} paragraphs 'Formula: ...', not one.")
    return " ".join(paragraphs[0].split()).removeprefix("Formula: ").removesuffix(".")


def aggregator_table() -> str:
    """One row per aggregator: constructor, formula, what it reads, scale, laws and paper."""
    head, rows, laws = ["constructor", "formula", "reads", "scale", "laws", "paper"], [], claims()
    for name in aggregators.names():
        aggregator = _example(name)
        held = ", ".join(LAWS[law] for law in laws[name].split())
        call = ", ".join(_argument(p) for p in inspect.signature(type(aggregator)).parameters.values())
        cells = [f"`{name}({call})`", formula(name), aggregator.reads, aggregator.scale, held]
        rows.append([*cells, _paper(name)])
    return "\n".join(table_lines(head, rows))


def formula_table() -> str:
    """One row per aggregator: formula, backward passes of a step and paper."""
    rows = []
    for name in aggregators.names():
        passes = "1" if _example(name).reads == "losses" else "T"
        rows.append([f"`{name}`", formula(name), passes, _paper(name)])
    return "\n".join(table_lines(["name", "direction", "backward passes", "paper"], rows))


def aggregator_page() -> str:
    """docs/aggregators.md with the present table of formulas."""
    before, _, rest = LIST.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{formula_table()}\n{END}{rest.partition(END)[2]}"


def _example(name: str) -> aggregators.Aggregator:
    """An aggregator with the arguments that it needs for three tasks."""
    cls = getattr(aggregators, name)
    parameters = inspect.signature(cls).parameters.values()
    required = {p.name: ARGUMENTS[p.name] for p in parameters if p.default is inspect.Parameter.empty}
    if name in ("COSMOS", "PBI"):
        import torch

        required["weights"] = torch.ones(3)
    return cls(**required)


def _paper(name: str) -> str:
    """The first link of an aggregator's docstring."""
    paper = PAPER.search(getattr(aggregators, name).__doc__ or "")
    return f"[paper]({paper.group(0).rstrip('.,')})" if paper else ""


def _argument(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    text = repr(parameter.default)
    return f"{parameter.name}={text if len(text) < 30 and ' at 0x' not in text else '...'}"


def multitask_table() -> str:
    """One row per recorded multi-task run: the gain of equal weights, and of the other methods."""
    head = ["run", "tasks", "seeds", "equal weights, delta_m, %"]
    head += ["largest of the other methods, delta_m, %", "methods better than equal weights", "worse"]
    rows = []
    for path in sorted((ROOT / "experiments" / "results").glob("*/multitask.json")):
        table = json.loads(path.read_text(encoding="utf-8"))
        methods = {row["method"]: row for row in table["rows"] if row.get("delta_m")}
        if "equal" not in methods:
            continue
        equal = methods.pop("equal")
        best = max(methods.values(), key=lambda row: row["delta_m"]["mean"], default=None)
        gaps = [row["against_first"] for row in methods.values() if row.get("against_first")]
        better = sum(gap["mean"] > gap["ci95"] for gap in gaps)
        worse = sum(gap["mean"] < -gap["ci95"] for gap in gaps)
        tasks = len({name.partition("/")[0] for name in table["higher_is_better"]})
        other = f"{_interval(best['delta_m'])} ({best['method']})" if best else ""
        cells = [path.parent.name, tasks, len(table["seeds"]), _interval(equal["delta_m"]), other]
        rows.append([*cells, f"{better} of {len(gaps)}", f"{worse} of {len(gaps)}"])
    return "\n".join(table_lines(head, rows))


def grouping_table() -> str:
    """One row per recorded grouping: every way to divide the tasks, and what the groups themselves add."""
    head = ["run", "tasks", "groups", "together, delta_m, %", "grouped", "random groups"]
    head += ["grouped - together", "grouped - random"]
    rows = []
    for path in sorted((ROOT / "experiments" / "results").glob("*/group.json")):
        table = json.loads(path.read_text(encoding="utf-8"))
        gains = {row["method"]: _interval(row["delta_m"]) for row in table["rows"]}
        cells = [path.parent.name, len(table["higher_is_better"]), len(table["groups"])]
        cells += [gains.get(method, "none exist") for method in ("together", "grouped", "random")]
        gaps = [table["differences"].get(f"grouped - {other}") for other in ("together", "random")]
        rows.append([*cells, *(_interval(gap) if gap else "" for gap in gaps)])
    return "\n".join(table_lines(head, rows))


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:+.2f} ± {estimate['ci95']:.2f}"


def files() -> dict[Path, str]:
    """The text of every generated file by its path."""
    llms = ROOT / "docs" / "llms.txt"
    return {**pages(), LIST: with_contents(aggregator_page()), llms: llms_txt(), **notebooks()}


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
