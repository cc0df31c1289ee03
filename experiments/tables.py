"""The tables in README.md: `python -m experiments.tables` writes them, with `--check` it only compares.

Every folder `experiments/results/<name>/` with a `table.json` that `experiments.compare` wrote gives one
table, between the README's two marks.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from .report import markdown, write_text

HERE = Path(__file__).resolve().parent
README, RESULTS = HERE.parent / "README.md", HERE / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
LOCAL = ("data_dir=", "device=")  # of the machine, not of the experiment


def block(results: Path = RESULTS) -> str:
    """What stands between the marks."""
    paths = sorted(results.glob("*/table.json"))
    parts = [_section(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return "\n\n".join(parts) or "None yet."


def _section(path: Path, table: dict[str, Any]) -> str:
    name = path.parent.name
    lines = [f"### {name}", "```bash", _command(table), "```", "", markdown(table).strip()]
    if path.with_name("figure.png").is_file():
        lines += ["", f"![{name}](experiments/results/{name}/figure.png)"]
    return "\n".join(lines)


def _command(table: dict[str, Any]) -> str:
    """The command that gives this table."""
    kept = [text for text in table["experiment"]["overrides"] if not text.lstrip("+").startswith(LOCAL)]
    recipes = [row["recipe"] for row in table["rows"] if not row["recipe"].startswith("trivial")]
    lists = [f"recipes=[{','.join(recipes)}]", f"seeds=[{','.join(map(str, table['seeds']))}]"]
    return shlex.join(["python", "-m", "experiments.compare", *kept, *lists])


def rewritten(text: str, content: str) -> str:
    """`text` with `content` between its marks.

    Raises:
        ValueError: the marks are missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no place for results; put a line {BEGIN} and a line {END} into it.")
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the tables of experiments/results into README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where README.md differs")
    only_check = parser.parse_args(arguments).check
    old = README.read_text(encoding="utf-8")
    new = rewritten(old, block())
    if new == old:
        return 0
    if only_check:
        print(
            "README.md differs from experiments/results; run `python -m experiments.tables`",
            file=sys.stderr,
        )
        return 1
    write_text(README, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
