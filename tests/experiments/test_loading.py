"""The measurement of lazy images: both sides train on the same episodes, and the table has its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import loading
from experiments.tables.loading import section
from metamtl.datasets.image_files import read_image


@pytest.mark.slow
def test_both_sides_train_on_the_same_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SIZE", 20)
    row = loading.measured(tmp_path, workers=1, rounds=1, steps=2)  # raises if the losses differ
    assert row["throughput"] == row["seconds"]["memory"][0] / row["seconds"]["files"][0] > 0


def test_different_trainings_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SIZE", 20)
    monkeypatch.setattr(loading, "read_image", lambda path, size: 255 - read_image(path, size))
    with pytest.raises(RuntimeError, match="the losses differ"):
        loading.measured(tmp_path, workers=0, rounds=1, steps=1)


def test_the_table_has_the_numbers_of_the_file() -> None:
    numbers = {"memory": 0.02, "files": 0.025, "throughput": 0.8, "workers": 2, "rounds": 3, "steps": 4}
    machine = {"hardware": {"device": "a processor", "threads": 2}, "versions": {"torch": "2.13"}}
    text = section({**numbers, **machine, "size": 84})
    assert "| in memory | 20.0 | 1 |" in text and "| files, 2 workers | 25.0 | 0.80 |" in text
