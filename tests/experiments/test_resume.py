"""A training that is interrupted ends as if it had not been."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from omegaconf import DictConfig

from experiments import train
from experiments.utils.checkpoints import RunFolder

from .results import VMAP, read, timeless

ROOT = Path(__file__).resolve().parents[2]
Compose = Callable[..., DictConfig]
SMALL = (
    *("experiment=sinusoid", "steps=40", "meta_batch=4", "validate.tasks=4", "select.tasks=4"),
    *("test.tasks=4", "average=0.9", "schedule=cosine", VMAP),
)


def command(folder: Path, *overrides: str, name: str = "train") -> list[str]:
    return [
        *(sys.executable, "-m", f"experiments.{name}", *SMALL, "checkpoint.every=5"),
        *(f"hydra.run.dir={folder}", *overrides),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(command(folder), cwd=ROOT, check=True, capture_output=True)
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert timeless(read(folder)) == timeless(read(whole))


@contextmanager
def started(folder: Path, *overrides: str, name: str = "train") -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, once a training has written a checkpoint."""
    arguments = command(folder, *overrides, name=name)
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not has_a_checkpoint(folder):
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.005)
            yield process
        finally:
            process.kill()


def has_a_checkpoint(folder: Path) -> bool:
    """Whether `folder` contains a checkpoint.

    Not with `Path.glob("**")`, which fails if the training deletes a folder while it is searched.
    """
    return any(
        name.startswith("step-")
        for parent, _, names in os.walk(folder)
        if Path(parent).name == "checkpoints"
        for name in names
    )


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    with started(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run(command(tmp_path), cwd=ROOT, check=True, capture_output=True)
    assert_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_says_how_to_resume(
    number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    with started(tmp_path, "steps=100000") as process:
        process.send_signal(number)
        _, words = process.communicate(timeout=200)
    assert process.returncode == 128 + number
    assert f"hydra.run.dir={tmp_path}" in words and "Traceback" not in words
    newest = RunFolder(tmp_path, {}, resume=True, keep=2).checkpoints()[0]
    step = int(newest.stem.partition("-")[2])
    assert f"after step {step};" in words


@pytest.mark.slow
def test_a_command_of_several_trainings_is_resumed_in_its_own_folder(tmp_path: Path) -> None:
    several = ("recipes=[mtl]", "seeds=[0]", "schedule=constant", "steps=100000")
    with started(tmp_path, *several, name="compare") as process:
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=200)
    assert f"hydra.run.dir={tmp_path} to resume" in words
    assert re.search(rf"a checkpoint is in {tmp_path}/.+/checkpoints\.", words)


def composed_small(composed: Compose, *overrides: str) -> DictConfig:
    return composed(*SMALL, "checkpoint.every=5", *overrides)


def test_damaged_checkpoints_are_skipped(
    composed: Compose, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train.run(composed_small(composed), tmp_path)
    for name in ("result.json", "model.safetensors"):
        (tmp_path / name).unlink()
    newest, before = RunFolder(tmp_path, {}, resume=True, keep=2).checkpoints()
    newest.write_bytes(newest.read_bytes()[:-1])
    caplog.clear()
    result = train.run(composed_small(composed), tmp_path)
    assert str(newest) in caplog.text and result["steps"] == 40
    before.write_bytes(b"")
    newest.write_bytes(b"")
    (tmp_path / "result.json").unlink()
    again = train.run(composed_small(composed), tmp_path)  # from the first step
    assert timeless(again) == timeless(result)


def test_a_finished_training_is_returned_and_not_overwritten(composed: Compose, tmp_path: Path) -> None:
    result = train.run(composed_small(composed), tmp_path)
    written = (tmp_path / "result.json").stat().st_mtime_ns
    assert timeless(train.run(composed_small(composed), tmp_path)) == timeless(result)
    assert (tmp_path / "result.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"another config: optimizer\.lr differ .* was .*, is 0\.5"):
        train.run(composed_small(composed, "optimizer.lr=0.5"), tmp_path)
    with pytest.raises(FileExistsError, match="resume=true to continue it, or another folder"):
        train.run(composed_small(composed, "resume=false"), tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoints/step-.* is of another config: seed"):
        train.run(composed_small(composed, "seed=5"), tmp_path)


def test_one_process_at_a_time(composed: Compose, tmp_path: Path) -> None:
    in_use = pytest.raises(RuntimeError, match="another process is training in")
    with started(tmp_path, "steps=100000"), in_use:
        train.run(composed_small(composed, "steps=100000"), tmp_path)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("checkpoint.every=0", r"checkpoint\.every=0: expected a positive integer"),
        ("checkpoint.keep=0", r"checkpoint\.keep=0"),
        ("resume=perhaps", "resume=perhaps: expected true or false"),
    ],
)
def test_options_are_checked(option: str, words: str, composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        train.run(composed_small(composed, option), tmp_path)
    assert not list(tmp_path.iterdir())
