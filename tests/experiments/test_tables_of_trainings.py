"""The table of single trainings: BatchNorm columns, transductive methods, as those of comparisons have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.tables import train
from experiments.tables.report import read_json

RESULTS = Path(train.__file__).parents[1] / "results"
RECORDED = {path.parent.name: read_json(path) for path in sorted(RESULTS.glob("*/result.json"))}


def cells(name: str, run: dict[str, Any]) -> dict[str, str]:
    _, head, _, row, *_ = train.section({name: run}).splitlines()
    return dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row))))


@pytest.mark.parametrize("name", RECORDED)
def test_both_kinds_of_batchnorm_have_a_column(name: str) -> None:
    run = RECORDED[name]
    for kind, found in run["test_by_batchnorm"].items():
        mean = found[run["config"]["metric"]]["mean"]
        assert cells(name, run)[f"new tasks, {kind} BatchNorm"].startswith(f"{mean:.4f}")


@pytest.mark.parametrize("name", RECORDED)
def test_transductive_methods_are_marked(name: str) -> None:
    run = RECORDED[name]
    text = train.section({name: run})
    assert (f"| {name}* " in text) == run["transductive"]["test"]
    assert ("transductive: predictions" in text) == run["transductive"]["test"]


def test_one_recorded_method_is_transductive() -> None:
    assert [name for name, run in RECORDED.items() if run["transductive"]["test"]] == [
        "omniglot_5way_1shot_tim"
    ]
