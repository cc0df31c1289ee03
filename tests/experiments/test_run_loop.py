"""A run looks after itself: what it logs, when it ends, and what it does about failures."""

from __future__ import annotations

import math
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
from experiments.utils import parts
from experiments.utils.checkpoints import RunFolder
from experiments.utils.streams import TEST, stream
from metamtl import checkpoint, tasks

from .results import VMAP, read, timeless

# Weights of 0.1 and more become infinite in the first step.
OVERFLOW = ("optimizer._target_=torch.optim.SGD", "optimizer.lr=1e38", "+optimizer.weight_decay=1000")
ROOT = Path(__file__).resolve().parents[2]
Compose = Callable[..., DictConfig]
# Nothing is adapted in evaluations, and there is one validation.
SMALL = ("adapt=none", "meta_batch=3", "recipe=maml", "validate.times=1", VMAP)


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Training episodes with these numbers have an infinite target in task 1."""
    original, drawn = train.sample, iter(range(10_000))

    def sample(source: Any, num_tasks: int, seed: int, step: int) -> Any:
        episodes = original(source, num_tasks, seed, step)
        if next(drawn) in bad:
            episodes.query.y[1] = float("inf")
        return episodes

    monkeypatch.setattr(train, "sample", sample)


def test_a_loss_that_is_not_finite_ends_a_run_with_all_that_is_needed(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {7})
    cfg = composed(*SMALL, "steps=20", "checkpoint.every=3")
    with pytest.raises(FloatingPointError) as error:
        train.run(cfg, tmp_path)
    last = tmp_path / "checkpoints" / "step-000000006.safetensors"
    words = str(error.value)
    assert words.startswith("step 7: the loss of tasks [1] of 3 is not finite (losses [inf])")
    assert (
        "Largest gradients: " in words and "body." in words and f"The last checkpoint is {last}." in words
    )
    assert not (tmp_path / "result.json").exists()
    assert checkpoint.load(last)["state"]["step"] == 6
    # The same folder goes on without the step.
    poisoned(monkeypatch, {1})
    result = train.run(composed(*SMALL, "steps=20", "checkpoint.every=3", "on_nonfinite=skip"), tmp_path)
    assert result["skipped_steps"] == 1 and result["steps"] == 20


def test_a_test_that_fails_loses_no_weights(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, last = tasks.Sinusoid.sample, stream(0, TEST).initial_seed()

    def sample(self: tasks.Sinusoid, num_tasks: int, generator: torch.Generator) -> Any:
        episodes = original(self, num_tasks, generator)
        if generator.initial_seed() == last:
            episodes.query.y[1] = float("inf")
        return episodes

    monkeypatch.setattr(tasks.Sinusoid, "sample", sample)
    weights = tmp_path / "broken" / "model.safetensors"
    with pytest.raises(FloatingPointError, match=f"^the test of {weights}: .*1 is not finite"):
        train.run(composed(*SMALL, "steps=3"), weights.parent)
    assert not (weights.parent / "result.json").exists()
    monkeypatch.undo()
    train.run(composed(*SMALL, "steps=3"), tmp_path / "whole")
    assert weights.read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_steps_that_are_not_finite_can_be_skipped(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned(monkeypatch, {0, 3, 4})
    result = train.run(composed(*SMALL, "steps=8", "on_nonfinite=skip"), tmp_path)
    assert result["skipped_steps"] == 3 and result["steps"] == 8
    assert result["gradient_evaluations"] == 8 * 3 * 3
    assert [record.args[0] for record in caplog.records if "skipped" in record.msg] == [0, 3, 4]  # type: ignore[index]
    assert math.isfinite(result["test"]["mse"]["mean"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), r"step 21: 20 steps in a row were skipped; the training has diverged"),
        (OVERFLOW, r"step 1: the weights .* are not finite .* lower its learning rate"),
    ],
    ids=["always", "weights"],
)
def test_a_run_that_cannot_recover_ends(
    options: tuple[str, ...],
    words: str,
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poisoned(monkeypatch, set(range(1, 100)))
    cfg = composed(*SMALL, "steps=100", "on_nonfinite=skip", "checkpoint.every=1000", *options)
    with pytest.raises(FloatingPointError, match=words):
        train.run(cfg, tmp_path)


def test_weights_that_are_not_finite_replace_no_checkpoint(composed: Compose, tmp_path: Path) -> None:
    few = ("steps=9", "checkpoint.every=1", "checkpoint.keep=1", *OVERFLOW, "optimizer.lr=1e-4")
    jump = ("schedule._target_=torch.optim.lr_scheduler.StepLR", "+schedule.step_size=3")
    unused = ("~schedule.factor", "~schedule.total_iters", "+schedule.gamma=1e42")
    cfg = composed(*SMALL, *few, *jump, *unused)
    with pytest.raises(FloatingPointError, match=r"^step 4: the weights .*step-000000003\.safetensors\."):
        train.run(cfg, tmp_path)
    (path,) = RunFolder(tmp_path, {}, resume=True, keep=1).checkpoints()
    weights = checkpoint.load(path)["state"]["model"].values()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights)


def test_training_ends_when_validation_does_not_improve(composed: Compose, tmp_path: Path) -> None:
    # A learning rate of 0 cannot improve anything.
    few = ("steps=40", "validate.times=20", "optimizer.lr=0", "patience=3")
    cfg = composed(*SMALL, *few)
    result = train.run(cfg, tmp_path)
    assert result["stopped_by"] == "patience" and result["steps"] == 2 * (1 + 3)
    assert len(result["history"]) == 4
    for option, words in (
        ("patience=0", "patience=0: expected a positive integer"),
        ("patience=20", "patience=20 cannot end a training with validate.times=20"),
        ("on_nonfinite=maybe", "on_nonfinite=maybe: expected raise or skip"),
    ):
        with pytest.raises(ValueError, match=words):
            parts.build(composed(*SMALL, *few, option))


def test_improvements_reset_the_patience(composed: Compose, tmp_path: Path) -> None:
    few = ("steps=60", "validate.times=30", "optimizer.lr=0.02", "patience=2")
    result = train.run(composed(*SMALL, *few), tmp_path)
    values = [entry["validation"] for entry in result["history"]]
    best = [min(values[: n + 1]) for n in range(len(values))]
    waits = [n - values.index(best[n]) for n in range(len(values))]
    assert max(waits[:-1]) < 2 and (waits[-1] == 2) == (result["stopped_by"] == "patience")
    assert len(set(best)) > 2


def test_a_run_that_was_stopped_by_the_clock_goes_on(composed: Compose, tmp_path: Path) -> None:
    few = (*SMALL, "steps=100", "validate.times=1")
    stopped = train.run(composed(*few, "max_minutes=0.002"), tmp_path)
    assert stopped["stopped_by"] == "max_minutes" and stopped["steps"] < 100
    assert read(tmp_path) == stopped
    assert train.run(composed(*few, "max_minutes=0.002"), tmp_path) == stopped  # this limit is reached
    resumed = train.run(composed(*few), tmp_path)
    assert resumed["stopped_by"] == "steps" and resumed["steps"] == 100
    whole = train.run(composed(*few), tmp_path / "whole")
    last, expected = (result["history"][-1] for result in (resumed, whole))
    assert last["step"] == 100 and last["validation"] == expected["validation"]
    assert resumed["gradient_evaluations"] == whole["gradient_evaluations"]
    assert train.run(composed(*few, "max_minutes=5"), tmp_path) == resumed  # finished: no limit matters


@pytest.mark.parametrize("adapt", ["regression", "trained"])
def test_the_test_adapts_with_the_rate_of_the_sweep(
    adapt: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[set[float]] = []
    original = train.measure

    def spy(model: Any, recipe: Any, *more: Any) -> Any:
        rates.append(set(getattr(recipe.adapter, "lr", ())))
        return original(model, recipe, *more)

    monkeypatch.setattr(train, "measure", spy)
    monkeypatch.setattr(train, "choose", first_gradient(train.choose))
    results = {
        rate: train.run(
            composed(
                f"adapt={adapt}", "meta_batch=3", "steps=2", "validate.times=1", VMAP, f"inner.lr={rate}"
            ),
            tmp_path / str(rate),
        )
        for rate in (0.002, 0.02)
    }
    assert rates == [{0.002}] * 3 + [{0.02}] * 3  # the test, the training tasks, and as trained
    first, second = (result["test"]["mse"]["mean"] for result in results.values())
    assert first != second


def first_gradient(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Choose among the strategies that take steps on all parameters with `inner.lr`."""

    def chosen(model: Any, ways: Any, *more: Any) -> Any:
        choice = choose(model, {n: way for n, way in ways.items() if n in ("all", "trained")}, *more)
        return choice._replace(stage=1)

    return chosen


def test_a_missing_file_of_a_data_set_is_named(composed: Compose, tmp_path: Path) -> None:
    cfg = composed("experiment=adult", "steps=1", "meta_batch=8")
    cfg.data_dir = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"adult is not in .*nowhere.*Download the official files"):
        train.run(cfg, tmp_path / "out")
    assert not (tmp_path / "out").exists()


FULL = """
import os, resource, sys
from pathlib import Path
from hydra import compose, initialize_config_dir
from experiments import train

replace = os.replace
def limited(source, target):
    replace(source, target)
    if Path(target).name == sys.argv[2]:  # from here on, no file can grow beyond 4 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, resource.RLIM_INFINITY))
os.replace = limited
with initialize_config_dir(version_base=None, config_dir=train.CONF):
    cfg = compose("train", sys.argv[3:])
    try:
        train.run(cfg, Path(sys.argv[1]))
    except OSError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "missing", "steps"),
    [
        ("step-000000008.safetensors", "checkpoints/step-000000012.safetensors", (8, 4)),
        ("step-000000020.safetensors", "model.safetensors", (20, 16)),
        ("tasks.json", "result.json", (20, 16)),
    ],
)
def test_a_full_disk_leaves_the_files_there_are(
    last: str, missing: str, steps: tuple[int, int], composed: Compose, tmp_path: Path
) -> None:
    few = ("device=cpu", "validate.tasks=4", "select.tasks=4", "test.tasks=4", *SMALL)
    few = (*few, "steps=20", "checkpoint.every=4")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), last, *few],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / missing} cannot be written (File too large)" in done.stdout
    assert "Files that were written before are unchanged. Free space" in done.stdout
    kept = [path.name for path in RunFolder(tmp_path, {}, resume=True, keep=2).checkpoints()]
    assert kept == [f"step-{step:09d}.safetensors" for step in steps]
    assert not (tmp_path / "result.json").exists() and not list(tmp_path.rglob("*.partial"))
    # With space again, the run goes on and ends as if nothing had happened.
    resumed = train.run(composed(*SMALL, "steps=20", "checkpoint.every=4"), tmp_path)
    whole = train.run(composed(*SMALL, "steps=20", "checkpoint.every=4"), tmp_path / "whole")
    assert timeless(resumed) == timeless(whole)
    models = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path, tmp_path / "whole")]
    assert models[0] == models[1]


def test_a_strategy_that_diverges_is_left_out(composed: Compose, tmp_path: Path) -> None:
    few = ("meta_batch=3", "steps=2", "validate.times=1", VMAP)
    diverging = "+adapt.diverging={_target_: metamtl.adapters.Gradient, steps: 9, lr: 1e9}"
    result = train.run(composed(*few, "adapt=none", diverging), tmp_path / "both")
    assert result["adaptation"]["strategy"] == "none"
    with pytest.raises(FloatingPointError, match="metric 'mse'"):
        train.run(composed(*few, "adapt=none", "~adapt.none", diverging), tmp_path / "alone")


def test_worker_processes_draw_the_same_episodes(composed: Compose, tmp_path: Path) -> None:
    results = [
        train.run(composed(*SMALL, "steps=6", f"workers={workers}"), tmp_path / str(workers))
        for workers in (0, 2)
    ]
    assert timeless(results[0] | {"config": None}) == timeless(results[1] | {"config": None})
