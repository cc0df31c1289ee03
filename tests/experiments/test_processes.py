"""A training in several processes is that of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .results import read
from .test_resume import ROOT, SMALL


def torchrun(
    folder: Path,
    *overrides: str,
    program: tuple[str, ...] = ("experiments.train", *SMALL),
    restarts: int = 0,
) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(f"--max-restarts={restarts}", "-m", *program, f"hydra.run.dir={folder}", *overrides),
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


MULTITASK = (
    *("experiments.multitask", "experiment=glyphs_multitask", "device=cpu"),
    "+net.backbone.batchnorm=frozen",  # otherwise BatchNorm normalizes with the examples of its process
    *("steps=10", "meta_batch=33", "validate.tasks=40", "select.tasks=40", "test.tasks=41"),
    *("+task.tasks=[script,case]", "tasks_per_step=2", "tune={optimizer.lr:[1e-2]}", "seeds=[0]"),
    *("run=[upgrad]", "validate.times=2", "checkpoint.every=2"),
)


def kill_one(process: subprocess.Popen[str]) -> None:
    """Kill one of the processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


def newest(folder: Path) -> str:
    return max(path.name for path in (folder / "checkpoints").glob("step-*.safetensors"))


@pytest.mark.slow
def test_two_processes_and_one(tmp_path: Path) -> None:
    process = torchrun(tmp_path / "two")
    printed, words = process.communicate(timeout=200)
    assert process.returncode == 0, words
    assert printed.count("result.json") == 1  # one process reports
    command = [sys.executable, "-m", "experiments.train", *SMALL, f"hydra.run.dir={tmp_path / 'one'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    two, one = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    results = [read(tmp_path / name) for name in ("two", "one")]
    assert results[0]["gradient_evaluations"] == results[1]["gradient_evaluations"]
    assert results[0]["test"]["mse"]["mean"] == pytest.approx(results[1]["test"]["mse"]["mean"], rel=1e-3)


@pytest.mark.slow
def test_a_dead_process_ends_the_run_which_can_be_resumed(tmp_path: Path) -> None:
    process = torchrun(tmp_path, "steps=100000", "checkpoint.every=5")
    while not list((tmp_path / "checkpoints").glob("step-*.safetensors")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    kill_one(process)
    _, words = process.communicate(timeout=240)
    assert process.returncode != 0 and "SIGKILL" in words
    before = newest(tmp_path)
    process = torchrun(tmp_path, "steps=100000", "checkpoint.every=5")
    while newest(tmp_path) <= before:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=240)
    assert f"hydra.run.dir={tmp_path}" in words


@pytest.mark.slow
def test_a_table_of_named_tasks_is_that_of_one_process_after_a_restart(
    tmp_path: Path, glyph_dir: Path
) -> None:
    """A process dies in the first training; torchrun starts all again, and they resume."""
    two, one = tmp_path / "two", tmp_path / "one"
    process = torchrun(two, f"data_dir={glyph_dir}", program=MULTITASK, restarts=1)
    while not list(two.glob("*/*/*/checkpoints/step-*.safetensors")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    kill_one(process)
    printed, words = process.communicate(timeout=250)
    assert process.returncode == 0 and "exitcode: -9" in words, words
    assert "resuming from" in words + printed
    assert printed.count("table: ") == 1  # one process reports
    command = [sys.executable, "-m", *MULTITASK, f"data_dir={glyph_dir}", f"hydra.run.dir={one}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    tables = [json.loads((folder / "multitask.json").read_text()) for folder in (two, one)]
    for ours, expected in zip(*(table["rows"] for table in tables), strict=True):
        for split in ("validation", "test"):
            values = (
                {name: found["mean"] for name, found in row[split].items()} for row in (ours, expected)
            )
            assert next(values) == pytest.approx(next(values), abs=0.05)
    runs = [read(folder / "upgrad/optimizer.lr=0.01/seed0") for folder in (two, one)]
    assert [run["processes"] for run in runs] == [2, 1]
    losses = [[entry["train_loss"] for entry in run["history"]] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
