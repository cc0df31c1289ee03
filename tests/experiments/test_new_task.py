"""The encoder of a finished training learns one more task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import multitask, new_task
from experiments.tables.multitask import folder_of
from experiments.utils.configs import compose

Overrides = Callable[..., list[str]]


@pytest.mark.slow
def test_encoders_learn_the_intents_of_new_domains(
    overrides: Overrides, tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    small = ("experiment=text_trio", "steps=2", "meta_batch=8", "validate.times=1", "net.width=8")
    measured = ("validate.tasks=40", "select.tasks=40", "test.tasks=40", "+task.tasks=[intent]")
    own = ("tasks_per_step=1", "run=[equal]", "seeds=[0]", "tune={optimizer.lr:[1e-3]}")
    given = [*overrides(*small), *measured, *own]
    multitask.run(compose("multitask", given), given, tmp_path)

    settings = [
        f"multitask={tmp_path}",
        "rows=[equal,single_intent]",
        "seeds=[0]",
        f"data_dir={real_data('clinc150')}",
    ]
    few = ["ways=3", "select.tasks=2", "test.tasks=4"]
    table = new_task.run(compose("new_task", [*settings, *few]), tmp_path / "new")
    assert [row["encoder"] for row in table["rows"]] == ["untrained", "equal", "single_intent"]
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in table["rows"])
    written = json.loads((tmp_path / "new" / "new_task.json").read_text(encoding="utf-8"))
    assert [row["adaptation"] for row in written["rows"]] == [row["adaptation"] for row in table["rows"]]
    assert "| single_intent |" in (tmp_path / "new" / "new_task.md").read_text(encoding="utf-8")


def test_the_folder_has_to_be_named(configs: None, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="multitask"):
        new_task.run(compose("new_task"), tmp_path)


def test_rows_that_were_not_trained_are_refused() -> None:
    single = {"method": "single tasks", "tuned": {"intent": {}}}
    table = {"rows": [single, {"method": "equal", "tuned": {"optimizer.lr": 0.003}}]}
    assert folder_of(table, "equal") == Path("equal/optimizer.lr=0.003")
    assert folder_of(table, "single_intent") == Path("single_intent/as given")
    with pytest.raises(ValueError, match="no row 'imtl'; it has single_intent, equal"):
        folder_of(table, "imtl")
