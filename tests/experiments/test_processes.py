"""A training in several processes is that of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .test_resume import ROOT, SMALL
from .test_train import read


def torchrun(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "experiments.train", *SMALL, f"hydra.run.dir={folder}", *overrides),
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


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
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, words = process.communicate(timeout=100)
    assert process.returncode != 0 and "SIGKILL" in words
    before = newest(tmp_path)
    process = torchrun(tmp_path, "steps=100000", "checkpoint.every=5")
    while newest(tmp_path) <= before:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=100)
    assert f"hydra.run.dir={tmp_path}" in words
