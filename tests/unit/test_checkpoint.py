"""A checkpoint holds exactly what was saved, or it is rejected."""

from __future__ import annotations

import math
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metamtl import checkpoint

STATE: dict[str, Any] = {
    "step": 3,
    "large": 2**80,
    "float": 0.1,
    "infinite": [math.inf, -math.inf],
    "none": None,
    "flag": True,
    "text": "ä\n",
    "tuple": (1, (2.5, "x"), []),
    "numbers as keys": {0: {"exp_avg": torch.ones(2, 3)}, 7: torch.tensor(1.0)},
    "tensors": [
        torch.arange(6).reshape(2, 3).t(),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.tensor([1.5], dtype=torch.bfloat16),
        torch.tensor(math.nan, dtype=torch.float64),
    ],
    "types": [torch.float32, torch.device("cpu")],
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "state.safetensors"
    checkpoint.save(path, STATE)
    return path


def test_what_was_saved_comes_back(path: Path) -> None:
    assert same(checkpoint.load(path), STATE)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no partial file is left


def test_a_training_continues_bit_for_bit(tmp_path: Path) -> None:
    def training() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
        return model, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        optimizer.zero_grad()
        noise = random.random() + np.random.random()
        (noise * model(torch.ones(5, 3))).sum().backward()
        optimizer.step()
        schedule.step()

    random.seed(0)
    np.random.seed(0)
    parts = training()
    for _ in range(3):
        step(*parts)
    state = {"parts": [part.state_dict() for part in parts], "random": checkpoint.random_state()}
    checkpoint.save(tmp_path / "state", state)
    for _ in range(3):
        step(*parts)
    others = training()
    saved = checkpoint.load(tmp_path / "state")
    for part, content in zip(others, saved["parts"]):
        part.load_state_dict(content)
    checkpoint.set_random_state(saved["random"])
    for _ in range(3):
        step(*others)
    for param, other in zip(parts[0].parameters(), others[0].parameters()):
        assert torch.equal(param, other)


@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_a_truncated_file_is_rejected(path: Path, percent: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(ValueError, match=r"incomplete or was changed"):
        checkpoint.load(path)


def test_no_changed_byte_is_overlooked(path: Path) -> None:
    content = path.read_bytes()
    for place in range(0, len(content), 13):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            loaded = checkpoint.load(path)
        except ValueError:
            continue
        assert same(loaded, STATE), place  # a byte that only names or pads


def test_other_files_are_rejected(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "state"
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match="incomplete or was changed"):
        checkpoint.load(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="incomplete or was changed"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of metamtl"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoint.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": {"b": {1, 2}}}, r"state\.a\.b is a set"),
        ({"a": [0, lambda: None]}, r"state\.a\.1 is a function"),
        ({(1, 2): 3}, r"state has the key \(1, 2\)"),
        ({True: 3}, "state has the key True"),
        ({"a": b"bytes"}, r"state\.a is a bytes"),
    ],
)
def test_what_it_cannot_hold_is_named(state: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=words):
        checkpoint.save(tmp_path / "state", state)
    assert not list(tmp_path.iterdir())


def test_an_older_file_stays_if_saving_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def full(*args: Any, **options: Any) -> None:
        args[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"step": 4})
    assert same(checkpoint.load(path), STATE)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_mappings_are_dicts_when_they_come_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "state", {"milestones": Counter({3: 2})})
    assert checkpoint.load(tmp_path / "state") == {"milestones": {3: 2}}
