from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metamtl.datasets import omniglot as omniglot_files

from .omniglot_archives import ARCHIVES, PREPARED, Server, pooch

pytest.importorskip("yaml")


def test_download_prepares_one_file_that_is_enough(server: Server, tmp_path: Path) -> None:
    arrays = omniglot_files.load(tmp_path, download=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*ARCHIVES, PREPARED])
    for name in ARCHIVES:
        (tmp_path / name).unlink()
    again = omniglot_files.load(tmp_path)
    assert server.asked == list(ARCHIVES)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)


def test_prepared_rows_are_in_the_documented_order(server: Server, tmp_path: Path) -> None:
    arrays = omniglot_files.load(tmp_path, download=True)
    assert arrays["character_names"].tolist() == [
        "Alpha/character01",
        "Alpha/character02",
        "Beta/character01",
        "Beta/character02",
        "Aleph/character01",
    ]
    assert arrays["alphabet_names"].tolist() == ["Alpha", "Beta", "Aleph"]
    assert arrays["alphabet_is_evaluation"].tolist() == [False, False, True]
    assert arrays["character"].tolist() == [row // 20 for row in range(100)]
    assert arrays["drawer"].tolist() == list(range(1, 21)) * 5
    assert arrays["alphabet"][::20].tolist() == [0, 0, 1, 1, 2]
    assert arrays["source_id"][::20].tolist() == [3, 4, 1, 2, 1]


def test_archives_that_lie_there_are_taken(server: Server, zips: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in zips.items():
        (tmp_path / name).write_bytes(data)
    assert len(omniglot_files.load(tmp_path)["images"]) == 100
    assert server.asked == []


def test_nothing_there_says_what_to_do(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"images_background\.zip.*download=True.*http.*METAMTL_DATA"
    ):
        omniglot_files.load(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def shortened(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", ["cut", "shortened", "flipped", "missing"])
def test_failed_download_leaves_nothing(
    server: Server, zips: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    name = ARCHIVES[1]
    if damage == "cut":
        server.cut.add(name)
    elif damage == "missing":
        del server.pages[name]
    else:
        server.pages[name] = {"shortened": shortened, "flipped": flipped}[damage](zips[name])
    with pytest.raises(ConnectionError, match=rf"{name} could not be downloaded from http.*by hand"):
        omniglot_files.load(tmp_path, download=True)
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVES[0]]
    server.cut.clear()
    server.pages.update(zips)
    assert len(omniglot_files.load(tmp_path, download=True)["images"]) == 100
    assert server.asked == [ARCHIVES[0], name, name]  # what was complete is not fetched again


def test_interrupted_download_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, url: str, output_file: str, pooch: Any) -> None:
        Path(output_file).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            omniglot_files.load(tmp_path, download=True)
    assert not list(tmp_path.iterdir())
    assert len(omniglot_files.load(tmp_path, download=True)["images"]) == 100


def test_interrupted_preparation_leaves_no_prepared_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, **arrays: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            omniglot_files.load(tmp_path, download=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ARCHIVES)
    assert len(omniglot_files.load(tmp_path)["images"]) == 100


@pytest.mark.parametrize("damage", [shortened, flipped])
@pytest.mark.parametrize("download", [False, True])
def test_damaged_archive_is_refused_and_kept(
    server: Server,
    zips: dict[str, bytes],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    download: bool,
) -> None:
    damaged = damage(zips[ARCHIVES[0]])
    (tmp_path / ARCHIVES[0]).write_bytes(damaged)
    (tmp_path / ARCHIVES[1]).write_bytes(zips[ARCHIVES[1]])
    expected = rf"{ARCHIVES[0]} is truncated or altered: .* expected [\d,]+ bytes with sha256 .*delete it"
    with pytest.raises(ValueError, match=expected):
        omniglot_files.load(tmp_path, download=download)
    assert (tmp_path / ARCHIVES[0]).read_bytes() == damaged
    assert not (tmp_path / PREPARED).exists()


def test_damaged_prepared_file_is_refused(server: Server, tmp_path: Path) -> None:
    arrays = omniglot_files.load(tmp_path, download=True)
    prepared = tmp_path / PREPARED
    good = prepared.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=rf"{PREPARED} .*{message}.*delete it"):
            omniglot_files.load(tmp_path, download=True)

    bare = io.BytesIO()
    np.save(bare, arrays["images"])
    for damaged in (shortened(good), flipped(good), b"", b"no zip at all", bare.getvalue()):
        prepared.write_bytes(damaged)
        refused("truncated or altered")
    altered = arrays["images"].copy()
    altered[50, 3, 3] ^= 1
    np.savez_compressed(prepared, **{**arrays, "images": altered})
    refused("sha256 of its contents")
    np.savez_compressed(prepared, **{**arrays, "images": arrays["images"][:-1]})
    refused("images has 99 entries, expected 100")
    np.savez_compressed(prepared, images=arrays["images"])
    refused("it has no character")
    prepared.unlink()
    assert len(omniglot_files.load(tmp_path)["images"]) == 100


def test_archives_with_other_drawings_are_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(omniglot_files.source("omniglot")["prepared"], "sha256", "0" * 64)
    with pytest.raises(ValueError, match=r"prepared from the archives in .*sha256"):
        omniglot_files.load(tmp_path, download=True)
    assert not (tmp_path / PREPARED).exists()
