"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table_lines(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table; every row has one cell for each column of `head`.

    Raises:
        ValueError: a row is shorter or longer than `head`, or a cell is not one line without `|`.

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
    if broken := [cell for cell in cells if "|" in cell or "\n" in cell]:
        raise ValueError(f"{broken[0]!r} has `|` or a line break, which end a cell of a Markdown table.")
    return f"| {' | '.join(cells)} |"
