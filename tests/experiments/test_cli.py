"""The command `metamtl`: from any folder, also with a user's own files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metamtl import aggregators
from metamtl.__main__ import COMMANDS, main


def metamtl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "metamtl", *arguments],
        cwd=cwd,
        env={**env, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_help_names_every_command_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in COMMANDS) and "examples:" in text
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert main(["train", "--help"]) == 0
    assert "result.json" in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["metamtl"])
    assert main(["list", "aggregators"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == aggregators.names()
    assert all(len(line.split()) > 3 for line in lines[1:-1])
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{kind}:" in text for kind in ("experiments", "recipes", "tasks", "nets"))
    assert "\n  maml " in text and "\n  sinusoid " in text


@pytest.mark.slow
def test_an_experiment_of_ones_own(tmp_path: Path) -> None:
    done = metamtl("init", "mine", cwd=tmp_path)
    assert done.returncode == 0 and "metamtl compare --config-dir=conf experiment=mine" in done.stdout
    again = metamtl("init", "mine", cwd=tmp_path)
    assert again.returncode == 1 and "nothing was written" in again.stderr
    few = ("steps=4", "validate.tasks=4", "select.tasks=4", "test.tasks=4", "hydra.run.dir=out")
    done = metamtl("compare", "--config-dir=conf", "experiment=mine", *few, cwd=tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert "| mine |" in done.stdout and "| protonet |" in done.stdout
    assert (tmp_path / "mine" / "out" / "table.json").is_file()
