"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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


def _line(cells: Sequence[str]) -> str:
    if broken := [cell for cell in cells if "\n" in cell]:
        raise ValueError(f"{broken[0]!r} has a line break, which ends the row of a Markdown table.")
    escaped = " | ".join(cell.replace("|", r"\|") for cell in cells)
    return f"| {escaped} |"
