"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def table_lines(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table; every row has one cell for each column of `head`. A `|` in a cell is escaped.

    Raises:
        ValueError: a row is shorter or longer than `head`, or a cell has a line break.

    >>> table_lines(["method", "steps"], [["maml", 100]])
    ['| method | steps |', '|---|---|', '| maml | 100 |']
    """
    lines = [_line(head), "|---" * len(head) + "|"]
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row has {len(row)} cells, and the table {len(head)} columns: {row}.")
        lines.append(_line([str(cell) for cell in row]))
    return lines


def diverged(messages: Mapping[str, str]) -> list[str]:
    """The lines below a table that name the methods whose training diverged, and where.

    >>> diverged({"maml": "seed 3: step 21: the loss is not finite."})
    ['', 'maml diverged and has no row (seed 3: step 21: the loss is not finite.).']
    """
    lines = [
        f"{method} diverged and has no row ({' '.join(text.split())})." for method, text in messages.items()
    ]
    return ["", *lines] if lines else []


def _line(cells: Sequence[str]) -> str:
    if broken := [cell for cell in cells if "\n" in cell]:
        raise ValueError(f"{broken[0]!r} has a line break, which ends the row of a Markdown table.")
    escaped = " | ".join(cell.replace("|", r"\|") for cell in cells)
    return f"| {escaped} |"
