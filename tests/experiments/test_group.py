"""Tasks with planted groups: the command finds them, compares fairly, and resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from experiments import group, train
from experiments.tables import __main__ as tables
from experiments.tables import group as group_table
from experiments.utils import affinity
from experiments.utils.configs import compose
from experiments.utils.partitions import Trained, random_partitions
from metamtl.analysis import Relatedness
from metamtl.metrics import mse
from metamtl.tasks import LabeledTasks

Overrides = Callable[..., list[str]]
FEATURES, TASKS = 8, ("a0", "b0", "a1", "b1")
COUNTS = {"train": 40, "validation": 40, "test": 200}


class Planted:
    """Two linear functions of the same inputs, each the target of two tasks: for a net of one feature."""

    def __init__(self, tasks: Iterable[str] = TASKS) -> None:
        self.tasks = tuple(tasks)

    def split(self, name: str) -> LabeledTasks:
        rng = torch.Generator().manual_seed(len(name))
        x = torch.randn(COUNTS[name], FEATURES, generator=rng)
        noise = 0.5 * torch.randn(COUNTS[name], len(TASKS), generator=rng)
        y = {task: x[:, "ab".index(task[0]), None] + noise[:, i, None] for i, task in enumerate(TASKS)}
        return LabeledTasks(
            x,
            {task: y[task] for task in self.tasks},
            loss=dict.fromkeys(TASKS, F.mse_loss),
            metrics={task: {"mse": mse} for task in TASKS},
            outputs=dict.fromkeys(TASKS, 1),
        )


PLANTED = (
    "task=tox21",  # whose options are dropped
    f"task._target_={__name__}.Planted",
    "net=mlp_heads",
    f"net.body={{_target_:torch.nn.Linear,in_features:{FEATURES},out_features:1}}",
    "net.features=1",
    "recipe=joint",
    "adapt=none",
    "steps=30",
    "meta_batch=40",
    "validate.times=1",
    "validate.tasks=40",
    "select.tasks=40",
    "test.tasks=40",
    "metric=mse",
    "device=cpu",
    "seeds=[0,1]",
    "tune={optimizer.lr:[0.1]}",
    "affinity.every=10",
    "control=1",
)


def run(folder: Path, *more: str) -> dict[str, Any]:
    every = [*PLANTED, *more]
    return group.run(compose("group", every), every, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("group")


@pytest.fixture(scope="module")
def tables_by_folder() -> dict[Path, dict[str, Any]]:
    return {}


@pytest.fixture
def table(configs: None, folder: Path, tables_by_folder: dict[Path, Any]) -> dict[str, Any]:
    """Trained once for all tests; the fixtures of the configs have the scope of one test."""
    if folder not in tables_by_folder:
        tables_by_folder[folder] = run(folder)
    return deepcopy(tables_by_folder[folder])


@pytest.mark.slow
def test_the_planted_groups_are_found_and_best(table: dict[str, Any], folder: Path) -> None:
    assert table["groups"] == [["a0", "a1"], ["b0", "b1"]]
    assert table["groups_by_seed"] == [table["groups"]] * 2
    assert [row["method"] for row in table["rows"]] == ["apart", "together", "grouped", "random"]
    assert [row["models"] for row in table["rows"]] == [4, 1, 2, 2]
    a, b = [0, 2], [1, 3]
    matrix = torch.tensor(table["relatedness"]["matrix"])
    assert matrix[0, 2] > matrix[a][:, b].max() and matrix[1, 3] > matrix[b][:, a].max()
    # One feature serves one function only: a net of all tasks, or of a random half, fails on some of them.
    gain = {row["method"]: row["delta_m"]["mean"] for row in table["rows"]}
    assert gain["grouped"] > max(gain["together"], gain["random"]) + 50
    assert table["best"] in ("apart", "grouped")
    assert (folder / "group.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_every_value_is_that_of_the_model_of_its_group(table: dict[str, Any], folder: Path) -> None:
    rows = {row["method"]: row for row in table["rows"]}
    of_a0 = {"apart": "single_a0", "together": "together", "grouped": "group_0-2"}
    for row, name in of_a0.items():
        results = [
            json.loads((folder / name / "optimizer.lr=0.1" / seed / "result.json").read_text())
            for seed in ("seed0", "seed1")
        ]
        expected = [result["test"]["a0/mse"]["mean"] for result in results]
        assert rows[row]["test"]["a0/mse"]["mean"] == pytest.approx(sum(expected) / 2)
        assert {result["steps"] for result in results} == {30} and rows[row]["epochs"]["a0"] == 30
        metric = "a0/mse" if row == "apart" else "delta_m"
        assert {result["config"]["metric"] for result in results} == {metric}


@pytest.mark.slow
def test_finished_runs_and_matrices_are_read(
    table: dict[str, Any], folder: Path, configs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("a finished run was started again"))
    monkeypatch.setattr(affinity, "meta_backward", lambda *_, **__: pytest.fail("a matrix was computed"))
    assert run(folder) == table
    with pytest.raises(ValueError, match=r"seed0.json is of other options; use another folder"):
        run(folder, "affinity.every=15")


def test_the_section_of_the_results(table: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "planted"
    place.mkdir()
    (place / "group.json").write_text(json.dumps(table))
    text = tables.block(tmp_path)
    assert "python -m experiments.group task=tox21 " in text and "device=cpu" not in text
    assert "a0, a1 | b0, b1" in text and "| random groups | 2 |" in text
    assert "![planted](../experiments/results/planted/group.png)" in text


def test_differences_are_paired_by_seed() -> None:
    def trained(*values: float, groups: list[list[str]]) -> Trained:
        by_seed = {seed: {"t/accuracy": value} for seed, value in enumerate(values)}
        return Trained({"validation": by_seed, "test": by_seed}, {"groups": groups})

    halves = [["t"], ["u"]]
    rows = {
        "apart": trained(0.4, 0.5, 0.6, groups=halves),
        "together": trained(0.5, 0.6, 0.7, groups=[["t", "u"]]),
        "grouped": trained(0.5, 0.62, 0.69, groups=halves),
    }
    result = group.compare(rows, {"t/accuracy": True})
    # Relative to the mean of single tasks, 0.5: +20 % with every seed, although seeds differ by more.
    assert result["differences"]["together - apart"] == {
        "mean": pytest.approx(20.0),
        "ci95": pytest.approx(0.0, abs=1e-9),
    }
    assert result["differences"]["grouped - together"]["mean"] == pytest.approx((0 + 4 - 2) / 3)
    assert result["best"] == "grouped"
    text = group_table.statements(
        {
            **result,
            "relatedness": {"measure": "cosine"},
            "groups": halves,
            "groups_by_seed": [halves, halves, [["t", "u"]]],
            "random_groups": [],
            "seeds": [0, 1, 2],
            "experiment": {"models": 2, "control": 3},
        }
    )
    assert "t | u" in text[0] and "2 of 3 seeds" in text[0]
    assert "one model per task is the same grouping" in text[1]
    assert "against one model +0.67 ± 7.59 % (within the noise)" in text[1]
    assert "none of them is established as the best" in text[1]
    assert "there is no other grouping" in text[2]


def test_random_partitions_have_the_same_sizes_and_are_others() -> None:
    tasks, like = ("a", "b", "c", "d", "e"), (("a", "c", "e"), ("b", "d"))
    result = random_partitions(tasks, like, 4, seed=0)
    assert len({frozenset(map(frozenset, each)) for each in (like, *result)}) == 5
    for partition in result:
        assert [len(part) for part in partition] == [3, 2]
        assert sorted(task for part in partition for task in part) == list(tasks)
        assert all(list(part) == sorted(part) for part in partition)
    assert random_partitions(tasks, like, 4, seed=0) == result != random_partitions(tasks, like, 4, seed=1)
    assert len(random_partitions(tasks, like, 50, seed=0)) == 9  # of 10 in all
    assert random_partitions(tasks, (tasks,), 4, seed=0) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("models=0", "models=0: expected an integer of at least 2"),
        ("models=1", "models=1: expected an integer of at least 2"),
        ("models=5", r"models=5, but there are 4 tasks \(a0, b0, a1, b1\); pass a number from 2 to 4"),
        ("task.tasks=[a1]", r"the tasks are \['a1'\]; a grouping needs at least two tasks"),
        ("measure=angle", "measure=angle: expected look_ahead, linearized, transfer, gramian or cosine"),
        ("affinity.every=31", "affinity.every=31 is more than the 30 steps"),
        ("control=-1", "control=-1: expected a non-negative integer"),
        ("steps=null", "training would never end"),
    ],
)
def test_what_cannot_work_is_rejected_before_the_first_training(
    option: str, message: str, configs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("a training was started"))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, option)


def test_options_without_effect_are_rejected(configs: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"affinity.lr=0.1 has no effect on measure=cosine"):
        run(tmp_path, "measure=cosine", "affinity.lr=0.1")
    few_shot = [*PLANTED, "task=sinusoid", "task._target_=metamtl.tasks.Sinusoid"]
    with pytest.raises(ValueError, match=r"metamtl.tasks.Sinusoid has no named tasks"):
        group.run(compose("group", few_shot), few_shot, tmp_path)


def test_many_tasks_are_grouped_by_spectral_clustering() -> None:
    names = tuple(f"t{i:02}" for i in range(16))
    block = torch.block_diag(torch.ones(9, 9), torch.ones(7, 7))
    assert group.group(Relatedness(block, names, "cosine"), 2, 0).groups == (names[:9], names[9:])
