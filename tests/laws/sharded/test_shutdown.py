"""A destroyed process group is gone, with its threads, so that a finished program ends without an abort."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
import sys
from pathlib import Path

import torch
from torch import distributed as dist

from metamtl import engines, meta_backward, nets, recipes, tasks

def threads():
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
sinusoids, model = tasks.Sinusoid(), nets.mlp(1, 4, 1)
episode = sinusoids.sample(2, torch.Generator().manual_seed(0))
for engine in (engines.Vmap(), engines.Auto()):
    meta_backward(model, recipes.maml(), episode, sinusoids.loss, engine=engines.Sharded(engine))
assert [name for name in threads() if "gloo" in name]
dist.destroy_process_group()
print([name for name in threads() if "gloo" in name])
"""


@pytest.mark.slow
def test_no_thread_of_a_destroyed_group_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "group")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
