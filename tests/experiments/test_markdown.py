"""The one writer of Markdown tables."""

from __future__ import annotations

import pytest

from experiments.tables.markdown import table_lines


def test_a_cell_stays_a_cell() -> None:
    assert table_lines(["a", "b"], [["`c |g|`", 1]]) == ["| a | b |", "|---|---|", r"| `c \|g\|` | 1 |"]


def test_what_would_break_a_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 cells, and the table 2 columns"):
        table_lines(["a", "b"], [["c"]])
    with pytest.raises(ValueError, match="has a line break"):
        table_lines(["a"], [["c\nd"]])
