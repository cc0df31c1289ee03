"""Six walks through the pages, each from an empty folder: a test does what the page says, word for word."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_flatten

from metamtl import checkpoint

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SHORT = ["steps=2", "meta_batch=2", "validate.tasks=2", "select.tasks=2", "test.tasks=4"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def block(page: str, containing: str, language: str = "python") -> str:
    """The only block of a page that contains a text."""
    blocks = [code for kind, code in BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
              if kind == language and containing in code]  # fmt: skip
    assert len(blocks) == 1, f"{page} has {len(blocks)} blocks with {containing!r}"
    return blocks[0]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(*command: str, folder: Path) -> str:
    """The output of a command that must succeed; `metamtl` and `python` are those of this environment."""
    names = {"metamtl": [sys.executable, "-m", "metamtl"], "python": [sys.executable]}
    names["torchrun"] = [sys.executable, "-m", "torch.distributed.run"]
    result = subprocess.run(
        [*names[command[0]], *command[1:]], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def rows(table: str) -> set[str]:
    return {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")}


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_table_of_three_methods(tmp_path: Path) -> None:
    page, rng = "howto/own_data.md", np.random.default_rng(0)
    run("metamtl", "init", "my_experiment", folder=tmp_path)
    mine = tmp_path / "my_experiment"
    for name in range(20):
        folder = mine / "images" / f"class_{name:02}"
        folder.mkdir(parents=True)
        pattern = rng.integers(0, 200, (20, 20))
        for number in range(11):  # one shot and ten queries, as in the config that init writes
            noisy = (pattern + rng.integers(0, 50, (20, 20))).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{number}.png")
    (mine / "conf/task/mine.yaml").write_text(block(page, "ImageFolder", "yaml"), encoding="utf-8")
    (mine / "conf/net/mine.yaml").write_text(block(page, "conv4", "yaml"), encoding="utf-8")
    experiment = mine / "conf/experiment/mine.yaml"
    trivial = "trivial: {net: {inputs: 784}}"
    assert f"`{trivial}`" in (DOCS / page).read_text(encoding="utf-8")
    text, count = re.subn(r"^trivial: .*$", trivial, experiment.read_text(encoding="utf-8"), flags=re.M)
    assert count == 1
    experiment.write_text(text, encoding="utf-8")
    command = block(page, "metamtl compare", "bash").splitlines()[-1].split()
    run(*command, *SHORT, "+net.hidden=8", "hydra.run.dir=out", folder=mine)
    table = (mine / "out/table.md").read_text(encoding="utf-8")
    assert {"anil", "protonet", "mine"} <= rows(table)


@pytest.mark.slow
def test_three_heads_with_missing_labels() -> None:
    names: dict[str, object] = {"__name__": "walk"}
    exec(compile(block("howto/missing_labels.md", "UPGrad"), "missing_labels.md", "exec"), names)
    estimates = names["estimates"]
    assert isinstance(estimates, dict) and list(estimates) == ["kind", "size", "tone"]
    assert estimates["kind"]["accuracy"].num_missing == 100
    assert estimates["size"]["mse"].num_missing == 150
    assert estimates["kind"]["accuracy"].mean > 0.9 and estimates["tone"]["accuracy"].mean > 0.9
    assert estimates["size"]["mse"].mean < 0.5


@pytest.mark.filterwarnings("ignore:Failed to load image Python extension")
@pytest.mark.parametrize(
    ("peer", "before", "after"),
    [
        ("learn2learn", "learner.clone()", "recipes.maml(steps=3"),
        ("higher", "innerloop_ctx", "rule=rules.SGD(momentum"),
        ("torchjd", "mtl_backward", "aggregators.UPGrad()"),
    ],
)
def test_migration_keeps_the_gradient(peer: str, before: str, after: str) -> None:
    """Both scripts of the page run; the gradients of all parameters are equal."""
    pytest.importorskip(peer, exc_type=ImportError)
    gradients = []
    for containing in (before, after):
        names: dict[str, object] = {"__name__": "walk"}
        exec(compile(block(f"migration/{peer}.md", containing), peer, "exec"), names)
        model = names["model"]
        assert isinstance(model, torch.nn.Module)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[1].values())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_new_adapter_is_compared_fairly(tmp_path: Path) -> None:
    page = "howto/own_adapter.md"
    run("metamtl", "init", "my_experiment", folder=tmp_path)
    mine = tmp_path / "my_experiment"
    adapter = block(page, "class SignDescent").partition("\nsinusoids, model")[0]
    with (mine / "mine.py").open("a", encoding="utf-8") as file:
        file.write(f"\n\n{adapter}\n\n{block(page, 'def signs', '')}")
    (mine / "conf/recipe/signs.yaml").write_text(block(page, "mine.signs", "yaml"), encoding="utf-8")
    command = block(page, "metamtl compare", "bash").replace("'", "").split()
    run(*command, *SHORT, "hydra.run.dir=out", folder=mine)
    table = (mine / "out/table.md").read_text(encoding="utf-8")
    assert {"anil", "protonet", "signs"} <= rows(table)


@pytest.mark.slow
def test_a_killed_script_resumes_bit_for_bit(tmp_path: Path) -> None:
    script = block("howto/resume.md", "checkpoint.save(")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        (folder / "train.py").write_text(script, encoding="utf-8")
    run("python", "train.py", folder=whole)
    with subprocess.Popen([sys.executable, "train.py"], cwd=killed, env=environment()) as process:
        try:
            while not (killed / "state.safetensors").exists():
                assert process.poll() is None
                time.sleep(0.005)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    run("python", "train.py", folder=killed)
    states = [checkpoint.load(folder / "state.safetensors") for folder in (whole, killed)]
    (leaves, shape), (resumed, resumed_shape) = map(tree_flatten, states)
    assert shape == resumed_shape and states[0]["step"] == 40
    for leaf, other in zip(leaves, resumed, strict=True):
        assert torch.equal(leaf, other) if isinstance(leaf, torch.Tensor) else leaf == other


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        block("distributed.md", '"RANK" not in os.environ'), encoding="utf-8"
    )
    alone = run("python", "train.py", folder=tmp_path)
    together = run(
        "torchrun", "--nproc-per-node", "2", "--master-port", "29534", "train.py", folder=tmp_path
    )
    assert len(alone.splitlines()) == 5 and together == alone
