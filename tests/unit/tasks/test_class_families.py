"""Alphabets and superclasses as named tasks: every split has all classes, and images of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metamtl.datasets.cifar100 import SUPERCLASSES
from metamtl.datasets.files import split_file
from metamtl.tasks import CIFARSuperclasses, Omniglot, OmniglotAlphabets
from metamtl.tasks.class_families import class_families

SPLITS = ("train", "validation", "test")
CLASSES = sorted(name for part in split_file("cifar_fs").values() for name in part)


def test_images_keep_their_classes() -> None:
    images = torch.arange(24, dtype=torch.uint8).view(6, 2, 2)
    families = {
        "low": [torch.tensor([1, 0]), torch.tensor([4])],
        "high": [torch.tensor([5]), torch.tensor([3])],
    }
    tasks = class_families(images, families)
    episodes = tasks.sample(10, torch.Generator().manual_seed(0))  # all of them, because there are fewer
    assert tasks.outputs == {"low": 2, "high": 2} and episodes["low"].query.x.shape == (3, 1, 2, 2)
    expected = {"low": {4: 0, 0: 0, 16: 1}, "high": {20: 0, 12: 1}}  # the first pixel of row i is 4 i
    for task, (x, y) in ((task, episode.query) for task, episode in episodes.items()):
        pixels = (x[:, 0, 0, 0] * 255).round().long().tolist()
        assert dict(zip(pixels, y.tolist())) == expected[task]


def test_superclasses_divide_the_classes_as_fc100_does() -> None:
    assert sorted(name for names in SUPERCLASSES.values() for name in names) == CLASSES
    split_of = {name: split for split, names in split_file("fc100").items() for name in names}
    splits = [{split_of[name] for name in names} for names in SUPERCLASSES.values()]
    assert all(len(names) == 5 for names in SUPERCLASSES.values()) and all(
        len(each) == 1 for each in splits
    )
    assert sorted(split for (split,) in splits) == ["test"] * 4 + ["train"] * 12 + ["validation"] * 4


def test_every_superclass_has_its_images_in_each_split(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((60_000, 3, 1, 1), np.uint8)
    images[:, 0, 0, 0] = np.repeat(np.arange(100), 600)  # the class
    images[:, 1, 0, 0] = np.tile(np.arange(600) // 3, 100)  # the position in the class, in thirds
    monkeypatch.setattr(
        "metamtl.tasks.cifar100_superclasses.load", lambda folder, download: (images, tuple(CLASSES))
    )
    family = CIFARSuperclasses(tasks=("vehicles_1", "fish"))
    counts = {"train": (2250, 0, 149), "validation": (250, 150, 166), "test": (500, 166, 199)}
    for split, (count, low, high) in counts.items():
        tasks = family.split(split)
        assert tasks.tasks == ("vehicles_1", "fish")
        x, y = tasks.sample(5000, torch.Generator().manual_seed(0))["fish"].query
        values = (x[:, :2, 0, 0] * 255).round().long()
        assert y.bincount().tolist() == [count // 5] * 5
        assert [CLASSES[i] for i in values[y == 3, 0].unique()] == ["shark"]
        assert (int(values[:, 1].min()), int(values[:, 1].max())) == (low, high)
    with pytest.raises(
        ValueError, match=r"tasks=\('Fish',\) must be different names out of aquatic_mammals"
    ):
        CIFARSuperclasses(tasks=["Fish"])


def test_drawings_of_an_alphabet_are_split_by_person(real_data: Callable[[str], Path]) -> None:
    folder = real_data("omniglot")
    family = OmniglotAlphabets(tasks=("Greek", "Latin"), data_dir=folder)
    images, total = Omniglot(data_dir=folder).split("train").images.float(), 0.0
    for split, drawings in zip(SPLITS, (12, 4, 4)):
        tasks = family.split(split)
        assert tasks.outputs == {"Greek": 24, "Latin": 26}
        x, y = tasks.sample(1000, torch.Generator().manual_seed(0))["Greek"].query
        assert x.shape == (24 * drawings, 1, 28, 28) and y.bincount().tolist() == [drawings] * 24
        total += float(x.sum() * 255)
    names = Omniglot(data_dir=folder).character_names
    rows = [20 * i + k for i, name in enumerate(names) if name.startswith("Greek/") for k in range(20)]
    assert total == pytest.approx(float(images[rows].sum()), rel=1e-6)  # every drawing is in one split
    with pytest.raises(ValueError, match="out of Alphabet_of_the_Magi, Angelic"):
        OmniglotAlphabets(tasks=["Klingon"])
