from __future__ import annotations

import hashlib
import io
import random
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metamtl.datasets import files
from metamtl.datasets import omniglot as omniglot_files
from metamtl.tasks import GroupedTasks
from metamtl.tasks.omniglot import Omniglot

pooch = pytest.importorskip("pooch")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("yaml")

PREPARED = "omniglot_28_u8.npz"
ARCHIVES = ("images_background.zip", "images_evaluation.zip")


def archive(kind: str, drawings: dict[str, np.ndarray]) -> bytes:
    """A zip laid out as the official ones: `images_<kind>/Alphabet/characterNN/NNNN_DD.png`, ink = 0."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"images_{kind}/", "")
        file.writestr(f"__MACOSX/images_{kind}/._Alpha", "what a file manager adds")
        for name, ink in drawings.items():
            png = io.BytesIO()
            Image.fromarray(ink == 0).convert("1").save(png, "PNG")
            file.writestr(f"images_{kind}/{name}.png", png.getvalue())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def zips() -> dict[str, bytes]:
    """Two alphabets of two characters, and one of one, by 20 drawers."""
    draw = np.random.default_rng(0)
    made = {}
    for kind, alphabets in (("background", {"Beta": 2, "Alpha": 2}), ("evaluation", {"Aleph": 1})):
        drawings, source = {}, 0
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                source += 1
                for drawer in range(20, 0, -1):  # the order in the archive must not matter
                    name = f"{alphabet}/character{character:02}/{source:04}_{drawer:02}"
                    drawings[name] = draw.random((105, 105)) < 0.1
        made[f"images_{kind}.zip"] = archive(kind, drawings)
    return made


class Server:
    """Serves `pages` (path -> bytes), and counts what is asked for; cut ones break off half-way."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                server.asked.append(name)
                if name not in server.pages:
                    self.send_error(404)
                    return
                page = server.pages[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page[: len(page) // 2] if name in server.cut else page)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join(10)
        self._http.server_close()


@pytest.fixture
def server(
    zips: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """The small archives on a server of this machine, and `sources.yaml` as it would describe them."""
    scratch = tmp_path_factory.mktemp("zips")
    for name, data in zips.items():
        (scratch / name).write_bytes(data)
    arrays = omniglot_files.prepare([scratch / name for name in ARCHIVES])
    found = Server()
    found.pages.update(zips)
    facts = {
        "archives": {
            name: {
                "url": f"{found.address}/{name}",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            for name, data in zips.items()
        },
        "prepared": {
            "file": PREPARED,
            "counts": {"images": 100, "character_names": 5, "alphabet_names": 3},
            "sha256": omniglot_files.checksum(arrays),
        },
    }
    monkeypatch.setattr(omniglot_files, "sources", lambda: {"omniglot": facts})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pooch.get_logger().setLevel("WARNING")
    yield found
    found.close()


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
    monkeypatch.setitem(omniglot_files.sources()["omniglot"]["prepared"], "sha256", "0" * 64)
    with pytest.raises(ValueError, match=r"prepared from the archives in .*sha256"):
        omniglot_files.load(tmp_path, download=True)
    assert not (tmp_path / PREPARED).exists()


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
