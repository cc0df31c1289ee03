"""The encoder of a finished training learns one more task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose

from experiments import new_task, train

Overrides = Callable[..., list[str]]


def test_encoders_learn_the_intents_of_new_domains(
    overrides: Overrides, tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    small = ("experiment=text_trio", "steps=2", "meta_batch=8", "validate.times=1", "net.width=8")
    measured = ("validate.tasks=40", "select.tasks=40", "test.tasks=40", "+task.tasks=[intent]")
    given = [*overrides(*small), *measured, "metric=intent/accuracy", "tasks_per_step=1"]
    train.run(compose("train", given), tmp_path / "single_intent" / "seed0")

    settings = [
        f"multitask={tmp_path}",
        "rows=[single_intent]",
        "seeds=[0]",
        f"data_dir={real_data('clinc150')}",
    ]
    few = ["ways=3", "select.tasks=2", "test.tasks=4"]
    table = new_task.run(compose("new_task", [*settings, *few]), tmp_path / "new")
    assert [row["encoder"] for row in table["rows"]] == ["untrained", "single_intent"]
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in table["rows"])
    written = json.loads((tmp_path / "new" / "new_task.json").read_text(encoding="utf-8"))
    assert [row["adaptation"] for row in written["rows"]] == [row["adaptation"] for row in table["rows"]]
    assert "| single_intent |" in (tmp_path / "new" / "new_task.md").read_text(encoding="utf-8")


def test_the_folder_has_to_be_named(configs: None, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="multitask"):
        new_task.run(compose("new_task"), tmp_path)
