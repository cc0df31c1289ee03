"""Damaged and hostile files are errors that name the file; nothing is executed or written outside."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from experiments.tables.report import read_json, write_json
from experiments.utils.checkpoints import RunFolder
from experiments.utils.collect import collect
from metamtl import checkpoint, load
from metamtl.datasets import archives, prepared

PERCENTS = range(0, 100, 5)
ARRAYS = {"images": np.arange(600, dtype=np.uint8).reshape(6, 100), "names": np.array(["a", "bc"])}
RESULT = {
    "config": {"metric": "mse", "seed": 0, "task": {}, "net": {}, "recipe": {}},
    "validation": {"mse": {"mean": 1.0, "ci95": 0.1}},
    "test": {"mse": {"mean": 1.0, "ci95": 0.1}},
    "stopped_by": "steps",
}


class Harmful:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def npz(folder: Path) -> Path:
    prepared.write_arrays(folder / "set" / "set.npz", ARRAYS)
    return folder / "set" / "set.npz"


def jsonl(folder: Path) -> Path:
    prepared.write_lines(folder / "set" / "set.jsonl", [{"text": "a" * 95, "label": 1}] * 7)
    return folder / "set" / "set.jsonl"


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/numbers.csv", "\n".join(str(7**i) for i in range(200)))
    return folder / "set.zip"


def gzipped(folder: Path) -> Path:
    (folder / "set.gz").write_bytes(gzip.compress(np.random.default_rng(0).bytes(2000)))
    return folder / "set.gz"


def state(folder: Path) -> Path:
    checkpoint.save(folder / "state.safetensors", {"step": 3, "weights": torch.arange(100.0)})
    return folder / "state.safetensors"


def result(folder: Path) -> Path:
    write_json(folder / "run" / "result.json", RESULT)
    (folder / "run" / ".hydra").mkdir()
    (folder / "run" / ".hydra" / "overrides.yaml").write_text("- seed=0\n", encoding="utf-8")
    return folder / "run" / "result.json"


def run_folder(path: Path) -> Any:
    return RunFolder(path.parent, RESULT["config"], resume=True, keep=1).result()


Kind = tuple[Callable[[Path], Path], Callable[[Path], Any]]
KINDS: dict[str, Kind] = {
    "npz": (npz, lambda path: prepared.read_arrays("set", "set.npz", ["images"], path.parents[1])),
    "jsonl": (jsonl, lambda path: prepared.read_lines("set", "set.jsonl", ["text"], path.parents[1])),
    "zip": (zipped, lambda path: archives.unzip(path, path.parent / "unpacked")),
    "gzip": (gzipped, archives.gunzip),
    "checkpoint": (state, checkpoint.load),
    "result of a run": (result, run_folder),
    "result to load": (result, lambda path: load(path.parent)),
    "result to collect": (result, lambda path: collect(path.parents[1])),
    "table": (result, lambda path: read_json(path, "config")),
}


@pytest.mark.parametrize("percent", PERCENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_named(kind: str, percent: int, folder: Path) -> None:
    write, read = KINDS[kind]
    path = write(folder)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(ValueError, match=rf"{path.name}.*(truncated|altered|changed|not JSON|is empty)"):
        read(path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "result to load"])
def test_the_whole_file_is_read(kind: str, folder: Path) -> None:
    write, read = KINDS[kind]
    read(write(folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content", [b"\0" * 200, b"[]", b"null", b"3", b"{" * 100_000, b"\xff\xfe{}"], ids=range(6)
)
def test_other_content_is_rejected(kind: str, content: bytes, folder: Path) -> None:
    write, read = KINDS[kind]
    path = write(folder)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name):
        read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_is_never_executed(kind: str, folder: Path) -> None:
    write, read = KINDS[kind]
    path = write(folder)
    path.write_bytes(pickle.dumps(Harmful(folder / "executed")))
    with pytest.raises(ValueError, match=path.name):
        read(path)
    torch.save({"a": Harmful(folder / "executed")}, path)
    if kind != "zip":  # torch's files are zip archives, which are unpacked and not read
        with pytest.raises(ValueError, match=path.name):
            read(path)
    if kind in ("npz", "checkpoint"):
        np.savez(path.with_suffix(".npz"), images=np.array([Harmful(folder / "executed")], object))
        path.write_bytes(path.with_suffix(".npz").read_bytes())
        with pytest.raises(ValueError, match=path.name):
            read(path)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [
        '{"tensor": "missing"}',
        '{"int": "x"}',
        '{"float": "x"}',
        '{"float": 3}',
        '{"dtype": "load"}',
        '{"dtype": "no_such_type"}',
        '{"dtype": 3}',
        '{"device": "nothing"}',
        '{"tuple": 3}',
        '{"dict": [1]}',
        '{"dict": [[[1], 2]]}',
        '{"unknown": [[1, 2, 3]]}',
        '{"a": 1, "b": 2}',
        "{}",
        "not JSON",
        "[" * 100_000,
    ],
    ids=range(16),
)
def test_a_checkpoint_with_a_right_checksum_and_wrong_content(content: str, folder: Path) -> None:
    metadata = {
        "format": checkpoint.FORMAT,
        "state": content,
        "sha256": checkpoint._checksum(content, {}),
    }
    save_file({}, folder / "state", metadata=metadata)
    with pytest.raises(ValueError, match=r"state is not a checkpoint of metamtl"):
        checkpoint.load(folder / "state")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"config": []},
        {"config": {}},
        {"config": {"task": {}}},
        {"config": None},
    ],
    ids=str,
)
def test_a_result_without_a_training(content: Any, folder: Path) -> None:
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"result\.json has no .*config"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"test": None},
        {"test": {}},
        {"test": {"accuracy": {"mean": 1.0, "ci95": 0.1}}},
        {"test": {"mse": {"mean": "x", "ci95": 0.1}}},
        {"test": {"mse": 3}},
        {"validation": {"mse": {"mean": None, "ci95": 0.1}}},
    ],
    ids=str,
)
def test_a_result_without_its_figures(change: dict[str, Any], folder: Path) -> None:
    write_json(result(folder), {**RESULT, **change})
    with pytest.raises(ValueError, match=r"has no (test|validation) figure of mse"):
        collect(folder)
