"""Hostile archives are not unpacked; damaged sources, splits and official files are named."""

from __future__ import annotations

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from metamtl.datasets import archives, files, prepare, prepared

PERCENTS = range(0, 100, 5)


def npz(folder: Path) -> Path:
    prepared.write_arrays(folder / "set" / "set.npz", {"images": np.zeros((6, 100), np.uint8)})
    return folder / "set" / "set.npz"


NAMES = [
    *("../outside", "a/../../outside", "/outside", "//host/outside", "..", "a/b/../../../outside"),
    *("..\\outside", "a\\..\\..\\outside", "C:\\outside", "C:outside", "\\outside"),
]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_unpacked_outside_the_folder(name: str, folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("good.txt", "good")
        archive.writestr(zipfile.ZipInfo(name), "bad")
    with pytest.raises(
        ValueError, match=r"a\.zip has the entry .*outside the folder; nothing was unpacked"
    ):
        archives.unzip(folder / "a.zip", folder / "unpacked")
    assert [path.name for path in folder.iterdir()] == ["a.zip"]


def test_links_are_not_unpacked(folder: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link; nothing was unpacked"):
        archives.unzip(folder / "a.zip", folder / "unpacked")


@pytest.mark.parametrize("size", [2**33 + 1, 2**40, 0xFFFFFFFF * 3])
def test_a_bomb_is_not_unpacked(size: int, folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.npy", b"0" * 1000)
        for entry in archive.filelist:
            entry.file_size = size // 4 + 1  # as the directory of the archive says
    for read in (lambda path: archives.unzip(path, folder / "unpacked"), archives.load_npz):
        with pytest.raises(ValueError, match=r"a\.zip has 4 entries that unpack to .* bytes"):
            read(folder / "a.zip")
    assert [path.name for path in folder.iterdir()] == ["a.zip"]


def test_a_gzip_bomb_is_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LIMIT", 10_000)
    (folder / "a.gz").write_bytes(gzip.compress(b"0" * 1_000_000))
    with pytest.raises(ValueError, match=r"a\.gz unpacks to more than 10,000 bytes"):
        archives.gunzip(folder / "a.gz")


def npy(header: str) -> bytes:
    text = header.encode() + b" " * (118 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 9), }"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + b"\x80\x04.",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }") + b"\0" * 8,
        npy("{'descr': 'nothing', 'fortran_order': False, 'shape': (1,), }"),
        npy("{'descr': '|u1', 'shape': (1,), }") + b"\0",
        npy("__import__('pathlib').Path('executed').touch()"),
        b"\x93NUMPY\x09\x00" + b"\0" * 120,
        b"nothing",
        b"",
    ],
    ids=range(10),
)
def test_a_wrong_array_is_named(content: bytes, folder: Path) -> None:
    path = npz(folder)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content)
    with pytest.raises(ValueError, match=r"set\.npz is truncated or altered.*images\.npy"):
        prepared.read_arrays("set", "set.npz", ["images"], folder)
    assert not (folder / "executed").exists()


def test_a_file_that_is_no_array_is_named(folder: Path) -> None:
    path = npz(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("script.py", "print()")
    with pytest.raises(ValueError, match=r"'script\.py', which is not an array"):
        prepared.read_arrays("set", "set.npz", ["images"], folder)


@pytest.mark.parametrize("percent", [p for p in PERCENTS])
def test_truncated_sources_are_noticed(percent: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = files.project_file("sources.yaml").read_bytes()
    sources = folder / "sources.yaml"
    sources.write_bytes(content[: len(content) * percent // 100])
    monkeypatch.setattr(files, "project_file", lambda _: sources)
    names = [line.split(":")[0] for line in content.decode().splitlines() if line[:1].isalpha()]
    with pytest.raises(ValueError, match=r"sources\.yaml is truncated or altered"):
        for name in names:
            if b"archives" in content.split(f"\n{name}:".encode())[-1].split(b"\n\n")[0]:
                files.source(name)


@pytest.mark.parametrize("percent", PERCENTS)
def test_truncated_splits_are_noticed(percent: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = files.project_file("splits/omniglot_maml.json").read_bytes()
    (folder / "split.json").write_bytes(content[: len(content) * percent // 100])
    monkeypatch.setattr(files, "project_file", lambda _: folder / "split.json")
    with pytest.raises(ValueError, match=r"split\.json is truncated or altered"):
        files.split_file("omniglot_maml")


OFFICIAL = {
    "adult": {"adult.data": "39, Private, 77516\n"},
    "parkinsons": {"parkinsons_updrs.data": "subject#,age\n1,x\n"},
    "mnist": {
        name: gzip.compress(b"\0\0\x08\x01\0\0\0\x09")
        for name in (
            *("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
            *("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
        )
    },
    "tox21": {"tox21.csv.gz": b"\x1f\x8b nothing"},
    "clinc150": {"data_full.json": "{}", "domains.json": "{}"},
    "wnut17": {
        name: "token without a tag\n"
        for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
    },
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_of_another_content_are_named(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_check", lambda *_: None)  # the checksums of official archives
    for file, content in OFFICIAL[name].items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / file).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}: the official files in .* are truncated or altered"):
        prepare.prepare(name, folder, folder / "data")
    assert not (folder / "data").exists()
