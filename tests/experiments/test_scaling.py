"""The measurement of throughput: that both sides compute the same, and its table."""

from __future__ import annotations

import pytest

from experiments import scaling
from experiments.tables import scaling as scaling_table


@pytest.mark.slow
def test_both_sides_compute_the_same() -> None:
    work = next(iter(scaling.WORKS))
    row = scaling.measured(work, processes=2, rounds=1, steps=1)  # raises if the losses differ
    assert row["speedup"] == row["seconds"]["1"][0] / row["seconds"]["2"][0] > 0


def test_the_table_has_the_numbers_of_the_file() -> None:
    row = {"one_process": 0.03, "all_processes": 0.02, "speedup": 1.5}
    text = scaling_table.section(
        {
            "processes": 2,
            "rounds": 3,
            "steps": 4,
            "hardware": {"device": "a processor"},
            "versions": {"torch": "2.13"},
            "works": {"work": row},
        }
    )
    assert "| work | 30.0 | 20.0 | 1.50 |" in text and "a processor; torch 2.13" in text


def test_more_processes_than_cores_are_an_error() -> None:
    with pytest.raises(ValueError, match="processes=1000, but this program may use only"):
        scaling.group(next(iter(scaling.WORKS)), 1000, 1)
