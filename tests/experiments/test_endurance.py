"""A long training neither grows nor slows down; here without a clock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import endurance
from experiments.tables.endurance import section
from experiments.tables.report import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_memory_does_not_grow_in_300_steps() -> None:
    row = endurance.fresh("Vmap", 300)
    assert len(row["seconds"]) == len(row["memory_mib"]) == 10 and min(row["seconds"]) > 0
    assert row["memory_growth"] < 0.01


@pytest.mark.slow
def test_every_step_is_recorded_and_the_table_has_a_row(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "experiments.endurance", "steps=20", "engines=[Vmap]"),
        f"hydra.run.dir={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Vmap: step " in done.stdout and (tmp_path / "endurance.json").is_file()
    row = {"seconds": [0.01, 0.0102], "memory_mib": [400.0, 401.0]}
    row |= {"time_change": 0.02, "memory_growth": 0.0025}
    text = section({**environment("cpu"), "steps": 10_000, "engines": {"Vmap": row}})
    assert "| Vmap | 10.00 | 10.20 | +2.0% | 400.0 | 401.0 | +0.25% |" in text
