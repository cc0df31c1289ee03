"""What a run writes is complete, correct and repeatable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from experiments import train
from experiments.utils.streams import stream

from .results import VMAP, check, read, timeless

ROOT = Path(__file__).resolve().parents[2]
Compose = Callable[..., DictConfig]


@pytest.mark.parametrize("recipe", ["maml", "mtl", "joint_pcgrad"])
def test_a_seed_gives_the_same_result_again(recipe: str, composed: Compose, tmp_path: Path) -> None:
    settings = (f"recipe={recipe}", "steps=5", "meta_batch=4", VMAP)
    first, again = (train.run(composed(*settings), tmp_path / name) for name in ("first", "again"))
    assert timeless(first) == timeless(again)
    other = train.run(composed(*settings, "seed=1"), tmp_path / "other")
    assert other["history"][0]["train_loss"] != first["history"][0]["train_loss"]


def test_no_two_streams_are_alike() -> None:
    drawn = {
        (seed, kind, step): float(torch.rand((), generator=stream(seed, kind, step)))
        for seed in (0, 1, 2, 2**20)
        for kind in range(5)
        for step in (0, 1, 2, 60_000)
    }
    assert len(set(drawn.values())) == len(drawn)
    assert drawn[1, 2, 2] == float(torch.rand((), generator=stream(1, 2, 2)))


def test_no_episode_is_met_in_two_places(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metamtl.tasks import Sinusoid

    draws: list[list[float]] = []
    sample = Sinusoid.sample

    def spy(family: Sinusoid, num_tasks: int, rng: torch.Generator) -> Any:
        episode = sample(family, num_tasks, rng)
        draws.append(episode.support.x[:, 0, 0].tolist())
        return episode

    monkeypatch.setattr(Sinusoid, "sample", spy)
    for seed in (0, 1):
        before = len(draws)
        train.run(composed("steps=2", f"seed={seed}"), tmp_path / str(seed))
        checked = draws.pop(before)  # the tasks of the first step, one of which runs before the training
        assert checked in draws[before:]
    drawn = [number for draw in draws for number in draw]
    assert len(drawn) == 2 * (2 * 25 + 4 * 4)
    assert len(set(drawn)) == len(drawn)


def test_a_time_limit_ends_a_run_well(composed: Compose, tmp_path: Path) -> None:
    train.run(composed("steps=1000000", "max_minutes=0.02"), tmp_path)
    result = read(tmp_path)
    check(result, "mse")
    assert 1 <= result["steps"] < 1_000_000 and 0 < result["seconds"] < 10
    assert result["history"]
    assert (tmp_path / "model.safetensors").is_file()


def test_the_budget_of_gradient_evaluations_ends_a_run(composed: Compose, tmp_path: Path) -> None:
    result = train.run(composed("steps=null", "gradient_evaluations=400", "meta_batch=10"), tmp_path)
    assert (
        result["gradient_evaluations"] == 420
    )  # a task costs 3: two for the inner step, one for the query
    assert result["steps"] == 14


@pytest.mark.parametrize(
    ("setting", "step"), [("inner.lr=1e30", 0), ("optimizer.lr=1e30", 1)], ids=["inner", "outer"]
)
def test_a_loss_that_is_not_finite_names_the_step(
    setting: str, step: int, composed: Compose, tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError, match=rf"^step {step}: .* not finite"):
        train.run(composed(setting, "inner.steps=3", "steps=20"), tmp_path)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    few = (
        "steps=2",
        "validate.tasks=4",
        "select.tasks=4",
        "test.tasks=4",
        "max_minutes=1",
        "data_dir=data",
    )
    command = [
        "-m",
        "experiments.train",
        "experiment=sinusoid",
        "seed=3",
        *few,
        f"hydra.run.dir={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    result = read(tmp_path)
    check(result, "mse")
    assert result["seeds"] == [3]
    assert f"{result['test']['mse']['mean']:.4f}" in done.stdout
    assert str(tmp_path / "result.json") in done.stdout


@pytest.mark.slow
def test_what_is_missing_needs_no_traceback(tmp_path: Path) -> None:
    options = ["experiment=vqa", f"data_dir={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "experiments.train", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "metamtl train: easy_vqa is not in " in done.stderr and "data_dir=" in done.stderr


def test_a_schedule_takes_the_rate_to_zero(composed: Compose, tmp_path: Path) -> None:
    few = ("steps=4", "validate.times=4", "optimizer.lr=0.05", VMAP)
    still, falling = (
        train.run(composed(*few, f"schedule={name}"), tmp_path / name)["history"]
        for name in ("constant", "cosine")
    )
    # The first of four steps is the same; the last goes less far.
    assert still[0]["validation"] == falling[0]["validation"]
    gaps = [abs(run[3]["validation"] - run[2]["validation"]) for run in (falling, still)]
    assert 0 < gaps[0] < gaps[1] / 2


def test_averaged_weights_are_those_that_are_tested(composed: Compose, tmp_path: Path) -> None:
    few = ("steps=2", "validate.times=2", "optimizer.lr=0.05", "seed=3", "recipe=joint", VMAP)
    last, averaged = (
        train.run(composed(*few, f"average={kept}"), tmp_path / str(kept))["history"] for kept in (0, 0.75)
    )
    # The average begins with the first step's weights, and then moves less far.
    assert last[0]["validation"] == averaged[0]["validation"]
    gaps = [abs(run[1]["validation"] - run[0]["validation"]) for run in (averaged, last)]
    assert 0 < gaps[0] < gaps[1]


def test_training_on_a_folder_of_images(composed: Compose, tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    for i in range(6):
        (tmp_path / "images" / f"class {i}").mkdir(parents=True)
        for j in range(3):
            images.new("RGB", (20 + i, 20), (40 * i, 0, 0)).save(
                tmp_path / "images" / f"class {i}" / f"{j}.png"
            )
    own = (
        *("task=image_folder", f"task.folder={tmp_path / 'images'}", "task.ways=2", "task.queries=2"),
        *("task.size=16", "task.splits=[0.4,0.3,0.3]", "net=conv4", "net.channels=3", "net.hidden=4"),
        *(
            "adapt=trained",
            "trivial=nearest_mean",
            "metric=accuracy",
            "recipe=maml",
            "steps=2",
            "workers=1",
        ),
    )
    result = train.run(composed(*own, VMAP), tmp_path / "run")
    assert result["steps"] == 2 and result["test"]["accuracy"]["n"] == 4
    (tmp_path / "images" / "class 0" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"class 0/0\.png"):
        train.run(composed(*own, VMAP), tmp_path / "again")
