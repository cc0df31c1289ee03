"""CIFAR-FS and FC100: the official archive, the sheets, the splits."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metamtl.datasets import cifar100
from metamtl.datasets.files import split_file
from metamtl.tasks import CIFARFS, FC100

from .omniglot_archives import Server, pooch

NAMES = sorted(name for part in split_file("cifar_fs").values() for name in part)
ARCHIVE = "cifar-100-binary.tar.gz"


def archive(parts: dict[str, bytes], folder: str = "cifar-100-binary") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as file:
        for name, content in parts.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def official(images: np.ndarray, labels: np.ndarray, num_train: int) -> dict[str, bytes]:
    """The official files: coarse label, fine label, and the red, green and blue plane of each image."""
    records = np.concatenate([labels[:, None] // 5, labels[:, None], images.reshape(len(images), -1)], 1)
    return {
        "train.bin": records[:num_train].astype(np.uint8).tobytes(),
        "test.bin": records[num_train:].astype(np.uint8).tobytes(),
        "coarse_label_names.txt": b"fish\n",
        "fine_label_names.txt": ("\n".join(NAMES) + "\n").encode(),
    }


@pytest.fixture(scope="module")
def parts() -> dict[str, bytes]:
    """Four training images and one test image per class; the first pixel is the number of the image."""
    draw = np.random.default_rng(0)
    labels = np.concatenate([draw.permutation(np.repeat(np.arange(100), 4)), np.arange(100)])
    images = draw.integers(0, 256, (500, 3, 32, 32), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(500) // 256, np.arange(500) % 256
    images[:, 0, 0, 2] = labels
    return official(images, labels, 400)


@pytest.fixture
def small(
    parts: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Server, dict[str, Any], bytes]]:
    """The small archive on a server of this machine, and `sources.yaml` as it would describe it."""
    server, content = Server(), archive(parts)
    server.pages[ARCHIVE] = content
    entry = {"url": f"{server.address}/{ARCHIVE}", "md5": hashlib.md5(content).hexdigest()}
    facts = {"archives": {ARCHIVE: entry}, "prepared": {"sha256": "0" * 64}}
    monkeypatch.setattr(cifar100, "source", lambda name: facts)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pooch.get_logger().setLevel("WARNING")
    yield server, facts, content
    server.close()


def test_archive_is_downloaded_once_and_sorted_by_class(small: Any, tmp_path: Path) -> None:
    images, names = cifar100.load(tmp_path / "cifar100", download=True)
    assert list(names) == NAMES and images.shape == (500, 3, 32, 32)
    assert images[:, 0, 0, 2].tolist() == [i // 5 for i in range(500)]
    numbers = 256 * images[:, 0, 0, 0].astype(int) + images[:, 0, 0, 1]
    assert all(rows[4] >= 400 and sorted(rows) == rows.tolist() for rows in numbers.reshape(100, 5))
    cifar100.load(tmp_path / "cifar100")
    assert small[0].asked == [ARCHIVE]


def test_splits_draw_their_own_classes(small: Any, tmp_path: Path) -> None:
    for benchmark, sizes in ((CIFARFS, (64, 16, 20)), (FC100, (60, 20, 20))):
        source = benchmark(5, 2, 3, data_dir=tmp_path, download=True)
        for name, size in zip(("train", "validation", "test"), sizes):
            tasks = source.split(name)
            names = [source.class_names[i] for i in tasks.ids]
            assert len(names) == size and names == split_file(source._split_file)[name]
            episode = tasks.sample(4, torch.Generator().manual_seed(0))
            assert episode.support is not None and episode.task is not None
            assert episode.support.x.shape == (4, 10, 3, 32, 32) and episode.query.x.shape[1] == 15
            drawn = (episode.support.x[:, ::2, 0, 0, 2] * 255).round().long()
            assert torch.equal(drawn, episode.task)


@pytest.mark.parametrize("name", ["cifar_fs", "fc100"])
def test_frozen_splits_hold_every_class_once(name: str) -> None:
    classes = [label for part in split_file(name).values() for label in part]
    assert sorted(classes) == NAMES and len(set(classes)) == 100


def test_nothing_there_says_what_to_do(small: Any, tmp_path: Path) -> None:
    match = r"neither <class>\.webp nor cifar-100-binary.*download=True.*http.*METAMTL_DATA"
    with pytest.raises(FileNotFoundError, match=match):
        CIFARFS(data_dir=tmp_path / "absent").split("train")
    assert not (tmp_path / "absent").exists()


def test_another_checksum_is_rejected_and_the_file_is_kept(small: Any, tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE
    path.write_bytes(small[2][:-100])
    with pytest.raises(
        ValueError, match=rf"{ARCHIVE} is truncated or altered: .* expected md5 .*delete it"
    ):
        cifar100.load(tmp_path, download=True)
    assert path.read_bytes() == small[2][:-100] and small[0].asked == []


def test_failed_download_leaves_nothing(small: Any, tmp_path: Path) -> None:
    small[0].cut.add(ARCHIVE)
    with pytest.raises(ConnectionError, match=rf"{ARCHIVE} could not be downloaded"):
        cifar100.load(tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


def test_archives_that_are_not_the_official_one(parts: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "other.tar.gz"
    record = bytes([0, 100]) + bytes(3072)
    cases: list[tuple[bytes, str]] = [
        (archive({"train": b"cposix\nsystem\n", "meta": b""}, "cifar-100-python"), "pickles meta, train"),
        (archive({"train.bin": b""}), r"it has no test\.bin"),
        (archive(parts | {"test.bin": bytes(3073)}), "test.bin has 3,073 bytes, which is no multiple"),
        (archive(parts | {"train.bin": record}), "label 100, but there are 100 classes"),
        (archive(parts)[:-5000], "truncated or altered"),
        (b"no archive", "truncated or altered"),
        (b"", "truncated or altered"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            cifar100.read_archive(path)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="CIFAR-100 has 600"):
        CIFARFS(5, 500, 101)
    with pytest.raises(ValueError, match="split 'val' is not one of"):
        FC100().split("val")


@pytest.mark.slow
def test_real_sheets_and_the_archive_are_the_same(
    real_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real_data("cifar100") / "cifar100"
    source = CIFARFS(data_dir=folder.parent)
    images, names = source._data  # the checksum of the images is compared
    assert images.shape == (60000, 3, 32, 32) and list(names) == NAMES
    # Ten images of every class, in the official format and the order of a shuffled archive.
    few = images.reshape(100, 600, 3, 32, 32)[:, 495:505]
    train, test = (part.reshape(-1, 3, 32, 32) for part in (few[:, :5], few[:, 5:]))
    labels = np.repeat(np.arange(100), 5)
    (tmp_path / "few.tar.gz").write_bytes(
        archive(official(np.concatenate([train, test]), np.concatenate([labels, labels]), 500))
    )
    again, _ = cifar100.read_archive(tmp_path / "few.tar.gz")
    assert np.array_equal(again.reshape(few.shape), few)
    # A class is green, another gray: the planes are in the right order.
    mean = images.reshape(100, 600, 3, -1).mean((1, 3))
    assert mean[NAMES.index("sea")].argmax() == 2 and mean[NAMES.index("orange")].argmax() == 0
    episode = source.split("test").sample(2, torch.Generator().manual_seed(0))
    assert episode.query.x.shape == (2, 75, 3, 32, 32) and 0.3 < float(episode.query.x.mean()) < 0.7


def test_damaged_sheets_are_named(
    real_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real_data("cifar100") / "cifar100"
    for name in NAMES[:-1]:
        (tmp_path / f"{name}.webp").symlink_to(folder / f"{name}.webp")
    with pytest.raises(FileNotFoundError, match=r"99 of the 100 sheets .* lacks worm\.webp"):
        cifar100.load(tmp_path)
    for wrong in (b"no image", b""):
        (tmp_path / "worm.webp").write_bytes(wrong)
        first = tmp_path / "worm.webp"
        with pytest.raises(ValueError, match=r"worm\.webp is truncated or altered"):
            cifar100._read_sheets([first])
    images = np.zeros((2, 3, 32, 32), np.uint8)
    with pytest.raises(ValueError, match="sha256 of their images"):
        cifar100._check(images, {"prepared": {"sha256": "0" * 64}}, tmp_path)
