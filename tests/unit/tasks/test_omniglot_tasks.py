"""Omniglot: splits, alphabets and the real images."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metamtl.datasets import files
from metamtl.datasets import omniglot as omniglot_files
from metamtl.tasks import GroupedTasks
from metamtl.tasks.omniglot import Omniglot

from .omniglot_archives import ARCHIVES, Server, archive


def test_construction_reads_nothing_and_splits_share_the_images(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = {
        "train": ["Alpha/character01", "Beta/character02", "Aleph/character01"],
        "validation": ["Beta/character01"],
        "test": ["Alpha/character02"],
    }
    monkeypatch.setattr("metamtl.tasks.omniglot.split_file", lambda name: split)
    omniglot = Omniglot(1, 1, 2, data_dir=tmp_path, download=True)
    assert server.asked == []
    train, test = omniglot.split("train"), omniglot.split("test")
    assert train.ids == [0, 3, 4] and test.ids == [1]
    assert train.images.data_ptr() == test.images.data_ptr() and omniglot.split("train") is train
    assert omniglot.alphabets.tolist() == [0, 0, 1, 1, 2]
    assert omniglot.alphabet_names == ["Alpha", "Beta", "Aleph"]
    turned = Omniglot(3, 1, 2, data_dir=tmp_path, rotations="classes").split("train")
    assert turned.ids == [4 * character + turns for turns in range(4) for character in (0, 3, 4)]
    episode = turned.sample(2, torch.Generator().manual_seed(0))
    assert episode.support is not None and episode.support.x.shape == (2, 3, 1, 28, 28)
    assert omniglot.loss is train.loss and omniglot.metrics is train.metrics


def test_tasks_within_one_alphabet(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = {
        "train": ["Alpha/character01", "Alpha/character02", "Beta/character01", "Aleph/character01"],
        "validation": ["Beta/character02"],
        "test": ["Beta/character02"],
    }
    monkeypatch.setattr("metamtl.tasks.omniglot.split_file", lambda name: split)
    options: dict[str, Any] = {"within": "alphabet", "data_dir": tmp_path, "download": True}
    one = Omniglot(1, 1, 2, **options).split("train")
    assert isinstance(one, GroupedTasks) and list(one.groups) == ["Aleph", "Alpha", "Beta"]
    assert one.ids == [0, 1, 2, 4]
    two = Omniglot(2, 1, 2, **options)
    assert list(two.split("train").groups) == ["Alpha"]  # the others have one character
    task = two.split("train").sample(3, torch.Generator().manual_seed(0)).task
    assert task is not None and [sorted(ids) for ids in task.tolist()] == 3 * [[0, 1]]
    with pytest.raises(ValueError, match=r"has more than 1 in the split 'test' of protocol 'maml'; lower"):
        two.split("test")
    turned = Omniglot(2, 1, 2, rotations="classes", **options)
    assert list(turned.split("train").groups) == ["Alpha"]
    assert turned.split("train").ids == list(range(8))
    with pytest.raises(ValueError, match="no alphabet has more than 1 in"):
        turned.split("test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "lake"}, "protocol='lake' is not one of 'maml', 'vinyals', 'alphabets'"),
        ({"within": "drawer"}, "within='drawer' is not 'alphabet' or None"),
        ({"rotations": "all"}, "rotations='all' is not one of"),
        ({"ways": 0}, "at least 1"),
        ({"shots": 10, "queries": 11}, "Omniglot has 20"),
        ({"shots": 0, "queries": 0}, "a task needs at least one example"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Omniglot(**options)
    with pytest.raises(ValueError, match="split 'val' is not one of"):
        Omniglot().split("val")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("protocol", "sizes"),
    [("maml", (1100, 100, 423)), ("vinyals", (1028, 172, 423)), ("alphabets", (883, 81, 659))],
)
def test_frozen_splits_hold_every_character_once(protocol: str, sizes: tuple[int, ...]) -> None:
    split = files.split_file(f"omniglot_{protocol}")
    assert tuple(map(len, split.values())) == sizes and list(split) == ["train", "validation", "test"]
    names = [name for part in split.values() for name in part]
    assert len(set(names)) == 1623 and len({name.split("/")[0] for name in names}) == 50


def test_maml_split_is_the_shuffle_it_says() -> None:
    split = files.split_file("omniglot_maml")
    frozen = [name for part in split.values() for name in part]
    names = sorted(frozen)
    random.Random(1).shuffle(names)
    assert names == frozen


def test_real_alphabets(real_data: Callable[[str], Path]) -> None:
    """Those of the evaluation set are for the test, the five smallest of the others for validation."""
    omniglot = Omniglot(within="alphabet", protocol="alphabets", data_dir=real_data("omniglot"))
    names, evaluation = omniglot.alphabet_names, omniglot._arrays["alphabet_is_evaluation"]
    sizes = omniglot.alphabets.bincount()
    background = sorted((int(sizes[i]), name) for i, name in enumerate(names) if not evaluation[i])
    groups = {name: list(omniglot.split(name).groups) for name in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert groups["test"] == sorted(name for i, name in enumerate(names) if evaluation[i])
    assert groups["validation"] == sorted(name for _, name in background[:5])
    assert groups["train"] == sorted(name for _, name in background[5:])
    for name, count in (("train", 25), ("validation", 5), ("test", 20)):
        episode = omniglot.split(name).sample(count, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        episode.check()
        assert episode.task is not None and episode.ways == 5
        alphabets = omniglot.alphabets[episode.task]
        assert bool((alphabets == alphabets[:, :1]).all())
        assert [names[i] for i in alphabets[:, 0]] == groups[name]


def test_real_omniglot(real_data: Callable[[str], Path]) -> None:
    data_dir = real_data("omniglot")
    omniglot = Omniglot(ways=20, shots=1, queries=1, data_dir=data_dir, protocol="vinyals")
    assert len(omniglot.character_names) == 1623 and omniglot.alphabets.unique().numel() == 50
    ids = [set(omniglot.split(name).ids) for name in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert set.union(*ids) == set(range(1623)) and sum(map(len, ids)) == 1623
    names, alphabets = omniglot.character_names, omniglot.alphabet_names
    assert all(
        names[row].startswith(alphabets[alphabet] + "/") for row, alphabet in enumerate(omniglot.alphabets)
    )
    episode = omniglot.split("train").sample(4, torch.Generator().manual_seed(0))
    episode.check()
    assert episode.support is not None and episode.support.x.shape == (4, 20, 1, 28, 28)
    assert episode.support.x.min() >= 0 and episode.support.x.max() == 1
    assert 0.05 < episode.support.x.mean() < 0.15  # ink is 1, and there is little of it


def test_preparing_real_drawings_gives_the_known_images(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = real_data("omniglot") / "omniglot"
    with np.load(folder / "omniglot_105_bits.npz") as file:
        bits = {name: file[name] for name in file.files}
    known = omniglot_files.load(folder)
    rows = {"background": range(0, 60), "evaluation": range(32400, 32460)}
    for kind, chosen in rows.items():
        drawings = {
            f"{bits['character_names'][bits['character'][row]]}/"
            f"{bits['source_id'][row]:04}_{bits['drawer'][row]:02}": np.unpackbits(
                bits["images_packed"][row], count=105 * 105
            ).reshape(105, 105)
            for row in chosen
        }
        (tmp_path / f"images_{kind}.zip").write_bytes(archive(kind, drawings))
    prepared = omniglot_files.prepare([tmp_path / name for name in ARCHIVES])
    picked = [*rows["background"], *rows["evaluation"]]
    for name in ("images", "drawer", "evaluation", "source_id"):
        assert np.array_equal(prepared[name], known[name][picked])
