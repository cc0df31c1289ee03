"""A training that is killed while it writes a checkpoint loses nothing, and ends with the same bytes.

One process runs the trainings as its children. In a child, `os.fsync`, `os.replace` or the function that
writes safetensors kills the process at its n-th call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .results import read, timeless
from .test_resume import ROOT, SMALL

OPTIONS = (*SMALL, "device=cpu", "adapt=none", "checkpoint.every=5")
INSTANTS = (
    "half written",
    "before fsync",
    "before rename",
    "after rename",
    "before the old one is deleted",
)
# The checkpoint, of the eight of a training: the first has none before it.
KILLS = [*zip(INSTANTS, (2, 4, 1, 8, 4))]

DRIVER = """
import json, os, signal, sys
from pathlib import Path
import safetensors.torch
from hydra import compose, initialize_config_dir
from experiments import train

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def at(instant, number):
    calls = {"replace": 0}  # of checkpoints only
    save, fsync, replace, unlink = safetensors.torch.save_file, os.fsync, os.replace, Path.unlink

    def now():
        return calls["replace"] + 1 == number

    def saving(tensors, path, metadata=None):
        save(tensors, path, metadata=metadata)
        if now() and instant == "half written":
            size = Path(path).stat().st_size
            os.truncate(path, size // 2)
            kill()

    def syncing(descriptor):
        if now() and instant == "before fsync":
            kill()
        fsync(descriptor)

    def replacing(source, target):
        if Path(target).name.startswith("step-"):
            if now() and instant == "before rename":
                kill()
            replace(source, target)
            calls["replace"] += 1
            if calls["replace"] == number and instant == "after rename":
                kill()
        else:
            replace(source, target)

    def unlinking(path, missing_ok=False):
        # The first old checkpoint is deleted after the third has been written.
        if instant.endswith("deleted") and path.name.startswith("step-") and ".partial" not in str(path):
            if calls["replace"] >= max(number, 3):
                kill()
        unlink(path, missing_ok=missing_ok)

    safetensors.torch.save_file, os.fsync, os.replace, Path.unlink = saving, syncing, replacing, unlinking

def child(folder, kill_at):
    process = os.fork()
    if process == 0:
        try:
            if kill_at:
                at(*kill_at)
            with initialize_config_dir(version_base=None, config_dir=train.CONF):
                train.run(compose("train", options), Path(folder))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)

options, kills, base = json.loads(sys.argv[1])
ends = {"whole": [child(f"{base}/whole", None)]}
for index, kill_at in enumerate(kills):
    folder = f"{base}/{index}"
    ends[index] = [child(folder, kill_at), sorted(os.listdir(f"{folder}/checkpoints")), child(folder, None)]
print(json.dumps(ends))
"""


def check(kills: list[tuple[str, int]], base: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([OPTIONS, kills, str(base)])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    assert ends["whole"] == [0], done.stderr
    whole = base / "whole"
    for index, (instant, number) in enumerate(kills):
        first, files, second = ends[str(index)]
        assert (first, second) == (9, 0), (instant, number, done.stderr)
        finished = [name for name in files if not name.startswith(".")]
        before = number - (instant in ("half written", "before fsync", "before rename"))
        if "deleted" in instant:
            before = max(number, 3)
        names = [f"step-{5 * n:09d}.safetensors" for n in range(1, before + 1)]
        assert set(names[-2:]) <= set(finished) <= set(names[-3:]), (instant, number)
        folder = base / str(index)
        models = [(path / "model.safetensors").read_bytes() for path in (folder, whole)]
        assert models[0] == models[1], (instant, number)
        assert timeless(read(folder)) == timeless(read(whole)), (instant, number)


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path: Path) -> None:
    check(KILLS, tmp_path)
