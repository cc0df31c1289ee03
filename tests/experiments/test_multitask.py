"""Tasks together against each by itself: fair, tuned alike, and honest about noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import multitask, train
from experiments.tables import __main__ as tables
from experiments.tables import multitask as multitask_table
from experiments.tables import report
from experiments.utils.configs import compose
from metamtl import Estimate

Overrides = Callable[..., list[str]]
SMALL = ("experiment=glyphs_multitask", "steps=2", "meta_batch=8", "validate.times=1")
MEASURED = ("validate.tasks=40", "select.tasks=40", "test.tasks=40", "+task.tasks=[script,case]")
OWN = ("tune={optimizer.lr:[1e-3,1e-2]}", "seeds=[0,1]", "run=[equal,distilled]", "tasks_per_step=2")
SEEDS = {"seed0", "seed1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multitask")


@pytest.fixture(scope="module")
def tables_by_folder() -> dict[Path, dict[str, Any]]:
    return {}


@pytest.fixture
def table(overrides: Overrides, folder: Path, tables_by_folder: dict[Path, Any]) -> dict[str, Any]:
    """Trained once for all tests; the fixtures of the configs have the scope of one test."""
    if folder not in tables_by_folder:
        every = [*overrides(*SMALL), *MEASURED, *OWN]
        tables_by_folder[folder] = multitask.run(compose("multitask", every), every, folder)
    return deepcopy(tables_by_folder[folder])


def results(folder: Path, row: str) -> dict[str, dict[str, Any]]:
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in (folder / row).glob("*/seed[01]/result.json")
    }


@pytest.mark.slow
def test_a_table_of_single_tasks_and_methods(table: dict[str, Any], folder: Path) -> None:
    single, *methods = table["rows"]
    assert [row["method"] for row in methods] == ["equal", "distilled"]
    assert table["higher_is_better"] == {"script/accuracy": True, "case/accuracy": True}
    assert table == {**json.loads((folder / "multitask.json").read_text(encoding="utf-8"))}
    # Every row was tuned over the same values, by a seed of no other use.
    for row in ("single_script", "single_case", "equal", "distilled"):
        tuned = {path.parent.name for path in (folder / row).glob("*/seed100")}
        assert tuned == {"optimizer.lr=0.001", "optimizer.lr=0.01"} and set(results(folder, row)) == SEEDS
    assert set(single["tuned"]) == {"script", "case"}

    # Each seed of a method against the single tasks of the same seed.
    alone = {task: results(folder, f"single_{task}") for task in ("script", "case")}
    found = results(folder, "equal")
    by_seed = []
    for seed in ("seed0", "seed1"):
        changes = []
        for task, of_task in alone.items():
            measure = f"{task}/accuracy"
            base = sum(of_task[s]["test"][measure]["mean"] for s in ("seed0", "seed1")) / 2
            gain = found[seed]["test"][measure]["mean"] - of_task[seed]["test"][measure]["mean"]
            changes.append(100 * gain / base)
        by_seed.append(sum(changes) / 2)
    assert methods[0]["delta_m"]["mean"] == pytest.approx(sum(by_seed) / 2)
    assert methods[0]["against_first"]["mean"] == 0


def test_the_best_rate_on_validation_is_taken(table: dict[str, Any], folder: Path) -> None:
    found = results(folder, "equal")
    scores = {}
    for rate in (0.001, 0.01):
        path = folder / "equal" / f"optimizer.lr={rate}" / "seed100" / "result.json"
        scores[rate] = json.loads(path.read_text(encoding="utf-8"))["validation"]["delta_m"]["mean"]
    best = max(scores, key=lambda rate: scores[rate])
    assert found["seed0"]["config"]["optimizer"]["lr"] == best
    # Weights are chosen by delta_m against what the single tasks reached on validation.
    reference = found["seed0"]["config"]["reference"]
    alone = results(folder, "single_case")
    expected = [alone[seed]["validation"]["case/accuracy"]["mean"] for seed in ("seed0", "seed1")]
    assert reference["case/accuracy"] == pytest.approx(sum(expected) / 2)


def test_teachers_are_the_single_tasks_of_the_seed(table: dict[str, Any], folder: Path) -> None:
    taught = results(folder, "distilled")["seed1"]["config"]["teachers"]
    for task in ("script", "case"):
        rate = table["rows"][0]["tuned"][task]["optimizer.lr"]
        assert taught[task] == str(folder / f"single_{task}" / f"optimizer.lr={rate}" / "seed1")
    assert results(folder, "equal")["seed1"]["config"]["teachers"] is None


def test_the_readme_shows_it_with_its_command(table: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "glyphs"
    place.mkdir()
    shutil.copy(folder / "multitask.json", place)
    text = tables.block(tmp_path)
    assert "python -m experiments.multitask " in text and " experiment=glyphs_multitask steps=2 " in text
    assert "'run=[equal,distilled]' 'seeds=[0,1]'" in text and "data_dir" not in text
    assert "| single tasks |" in text and "within the noise" in text
    assert "| script/accuracy ↑ |" in text and "on validation" not in text
    every = (folder / "multitask.md").read_text(encoding="utf-8")
    assert "| on validation | script/accuracy ↑ | case/accuracy ↑ | chosen on it |" in every
    assert f"script={multitask_table.label(table['rows'][0]['tuned']['script'])}" in every


def test_many_measures_are_no_columns_of_the_readme(table: dict[str, Any]) -> None:
    many = {f"task{n}/accuracy": True for n in range(multitask_table.FEW + 1)}
    wide = multitask_table.section("wide", [], {**table, "higher_is_better": many})
    assert "| method | mean accuracy ↑ | delta_m, % |" in wide


def test_a_row_that_diverges_is_named(overrides: Overrides, tmp_path: Path) -> None:
    own = ("run=[equal]", "seeds=[3]", "tune={optimizer.lr:[1e30]}")
    given = [*overrides(*SMALL), *MEASURED, *own]
    with pytest.raises(
        FloatingPointError, match=r"single_script, optimizer.lr=1e\+30, seed 3: .*not finite"
    ):
        multitask.run(compose("multitask", given), given, tmp_path)


def test_a_method_that_diverges_costs_the_others_nothing(overrides: Overrides, tmp_path: Path) -> None:
    diverging = ("seeds=[3]", "tune=null", "+methods.lost={optimizer:{lr:1e30}}")
    both = [*overrides(*SMALL), *MEASURED, *diverging, "run=[lost,equal]"]
    table = multitask.run(compose("multitask", both), both, tmp_path)
    assert [row["method"] for row in table["rows"]] == ["single tasks", "equal"]
    assert "not finite" in table["diverged"]["lost"]
    text = (tmp_path / "multitask.md").read_text(encoding="utf-8")
    assert "lost diverged and has no row (lost, " in text and "| against equal |" in text
    alone = [*both[:-1], "run=[lost]"]
    table = multitask.run(compose("multitask", alone), alone, tmp_path)
    assert [row["method"] for row in table["rows"]] == ["single tasks"]
    assert "lost diverged" in multitask_table.section("lost", [], table)
    assert "'run=[lost]'" in multitask_table.section("lost", [], table)


def test_finished_runs_are_not_run_again(
    overrides: Overrides, table: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("a finished run was started again"))
    given = [*table["experiment"]["overrides"], *OWN[1:]]
    assert multitask.run(compose("multitask", given), given, folder)["rows"] == table["rows"]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([1.0, 1.1, 0.9], "+"), ([-1.0, -1.1, -0.9], "-"), ([1.0, -1.0, 0.5], "="), ([3.0], "=")],
)
def test_a_sign_stands_only_beyond_the_noise_of_the_seeds(differences: list[float], expected: str) -> None:
    estimate = Estimate.of(torch.tensor(differences, dtype=torch.float64))
    found = {"mean": estimate.mean, "ci95": estimate.ci95}
    assert report.sign(found) == expected
    text = multitask_table._verdict(found)
    assert text.endswith("within the noise") == (expected == "=")


def test_unknown_methods_are_named(overrides: Overrides, tmp_path: Path) -> None:
    given = [*overrides("experiment=glyphs_multitask"), "run=[equal,magic]"]
    with pytest.raises(ValueError, match="run has 'magic', which is not one of them; there are equal, "):
        multitask.run(compose("multitask", given), given, tmp_path)
