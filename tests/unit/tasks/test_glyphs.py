"""Glyphs and GlyphAttributes: the letters drawn, their splits, the file they are kept in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from metamtl.datasets import glyph_drawing, glyphs
from metamtl.datasets.files import SPLITS
from metamtl.episode import Episode
from metamtl.tasks.few_shot import FewShot
from metamtl.tasks.glyph_attributes import TASKS, GlyphAttributes
from metamtl.tasks.glyphs import Glyphs

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

FILE = f"glyphs-{glyph_drawing.VERSION}.npz"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def drawn(glyph_dir: Path) -> Glyphs:
    return Glyphs(data_dir=glyph_dir)


@pytest.fixture(scope="module")
def pictures() -> glyph_drawing.Pictures:
    return glyph_drawing._pictures()


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Puts one letter in the place of the slow drawing; counts the calls."""
    calls: list[int] = []

    def draw() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"images": np.zeros((20, 28, 28), np.uint8), "labels": np.zeros(20, np.int32)}

    monkeypatch.setattr(glyphs, "draw", draw)
    return calls


@pytest.mark.slow
def test_over_two_thousand_letters_of_twenty_pictures(drawn: Glyphs) -> None:
    assert drawn.images.dtype == torch.uint8 and drawn.images.shape == (len(drawn.labels), 28, 28)
    assert len(drawn.letters) > 2_000
    assert torch.equal(drawn.labels, torch.arange(len(drawn.letters)).repeat_interleave(20))
    firsts = [(letters[0].script, letters[0].code) for letters in drawn.letters]
    assert firsts == sorted(firsts)
    codes = [letter.code for letters in drawn.letters for letter in letters]
    assert len(codes) == len(set(codes))


def test_every_class_has_four_to_twelve_faces(drawn: Glyphs) -> None:
    a = drawn.arrays
    face = (a["family"].astype(int) * 4 + a["weight"] * 2 + a["slant"]).reshape(-1, 20)
    faces = {len(set(row)) for row in face.tolist()}
    assert min(faces) == 4 and max(faces) == 12


def test_pictures_are_white_ink_within_the_paper(drawn: Glyphs) -> None:
    images = drawn.images
    assert bool((images.flatten(1).max(1).values > 100).all())
    edges = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert edges.bool().any(1).float().mean() < 0.02
    assert 0.05 < images.float().mean() / 255 < 0.25


def test_no_picture_twice(drawn: Glyphs) -> None:
    assert len({image.tobytes() for image in drawn.images.numpy()}) == len(drawn.images)


def test_letters_that_look_the_same_are_one_class(drawn: Glyphs) -> None:
    of_code = {letter.code: n for n, letters in enumerate(drawn.letters) for letter in letters}
    for alike in ("A\u0391\u0410", "O\u039f\u041e", "o\u03bf\u043e\u0585", "B\u0392\u0412"):
        assert len({of_code[ord(letter)] for letter in alike}) == 1
    for different in ("Oo", "Cc", "m\u0442", "AB", "\u00e9\u00e8", "\u05d3\u05e8"):
        assert len({of_code[ord(letter)] for letter in different}) == 2
    for copy in (0xFF21, 0x1D400, 0x212B, 0xFB01, 0xFE91):  # fullwidth, bold, angstrom, fi, initial beh
        assert copy not in of_code


def test_splits_share_no_class_and_no_script(drawn: Glyphs) -> None:
    sets = [set(drawn.classes[name]) for name in SPLITS]
    assert sum(map(len, sets)) == len(set().union(*sets)) == len(drawn.letters)
    assert len(sets[0]) > 1_500 and len(sets[1]) > 100 and len(sets[2]) > 350
    known = {script for scripts in drawn.scripts.values() for script in scripts}
    assert sum(len(scripts) for scripts in drawn.scripts.values()) == len(known)
    assert known == {letter.script for letters in drawn.letters for letter in letters}
    for name in ("validation", "test"):
        for number in drawn.classes[name]:
            assert not {a.script for a in drawn.letters[number]} & set(drawn.scripts["train"])


@pytest.mark.slow
def test_no_class_has_the_plain_picture_of_another(pictures: glyph_drawing.Pictures) -> None:
    owner: dict[glyph_drawing.Picture, int] = {}
    for codes, own in glyph_drawing._classes(pictures):
        for picture in own.values():
            assert owner.setdefault(picture, codes[0]) == codes[0]


def test_a_class_is_drawn_the_same_each_time(drawn: Glyphs, pictures: glyph_drawing.Pictures) -> None:
    number = next(n for n, letters in enumerate(drawn.letters) if letters[0].code == ord("A"))
    faces, images = glyph_drawing._examples(ord("A"), pictures[ord("A")])
    assert np.array_equal(images, drawn.images[drawn.labels == number].numpy())
    weights = [glyph_drawing.FACES[face].weight for face in faces]
    assert weights == drawn.arrays["weight"][drawn.labels == number].tolist()


def test_nearest_mean_on_raw_pixels_is_no_easy_win(drawn: Glyphs) -> None:
    # Omniglot: 42 %. Chance is 20 %.
    episode = drawn.split("test").sample(400, rng())
    assert episode.support is not None
    apart = torch.cdist(episode.query.x.flatten(2), episode.support.x.flatten(2))
    right = (apart.argmin(-1) == episode.query.y).float().mean()
    assert 0.35 < right < 0.45


def test_split_is_few_shot(drawn: Glyphs, glyph_dir: Path) -> None:
    split = Glyphs(ways=3, shots=2, queries=4, rotations="classes", data_dir=glyph_dir).split("validation")
    assert isinstance(split, FewShot) and len(split.ids) == 4 * len(drawn.classes["validation"])
    assert split.sample(2, rng()).query.x.shape == (2, 12, 1, 28, 28)
    with pytest.raises(ValueError, match="'dev' is not one of 'train', 'validation', 'test'"):
        Glyphs().split("dev")


def test_drawn_once_and_not_before_it_is_needed(tmp_path: Path, no_drawing: list[int]) -> None:
    lazy = Glyphs(data_dir=tmp_path)
    assert not no_drawing and not list(tmp_path.iterdir())
    assert len(lazy.images) == len(Glyphs(data_dir=tmp_path).images) == 20
    assert len(no_drawing) == 1
    assert [path.name for path in (tmp_path / "glyphs").iterdir()] == [FILE]


def test_a_damaged_file_is_refused(glyph_dir: Path, tmp_path: Path, no_drawing: list[int]) -> None:
    path = tmp_path / "glyphs" / FILE
    path.parent.mkdir()
    whole = next((glyph_dir / "glyphs").iterdir()).read_bytes()
    middle = len(whole) // 2
    for damaged in (
        b"",
        b"\x00" * 99,
        b"PK\x03\x04",
        whole[:middle],
        whole[:middle] + b"12345678" + whole[middle + 8 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(RuntimeError, match="not a complete file of drawn letters") as caught:
            glyphs.load(tmp_path)
        assert str(path) in str(caught.value) and "delete it" in str(caught.value)
    np.savez(path, version=0, labels=np.zeros(20), images=np.zeros((20, 28, 28)))
    with pytest.raises(RuntimeError, match="drawing version 0"):
        glyphs.load(tmp_path)
    assert not no_drawing


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, no_drawing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    platformdirs = pytest.importorskip("platformdirs")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    blocked = tmp_path / "a-file"
    blocked.touch()
    monkeypatch.setenv("METAMTL_DATA", str(blocked))
    for _ in range(2):
        assert len(glyphs.load()["labels"]) == 20
    assert len(no_drawing) == 1 and (tmp_path / "cache" / "glyphs" / FILE).is_file()
    glyphs.load(tmp_path)  # a folder that the caller names is the only place
    assert len(no_drawing) == 2 and (tmp_path / "glyphs" / FILE).is_file()
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: blocked / "cache")
    assert len(glyphs.load()["labels"]) == 20  # nowhere to keep them: drawn each time


@pytest.mark.parametrize("missing", ["matplotlib", "PIL"])
def test_a_missing_package_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing} is missing: pip install 'metamtl\[glyphs\]'"):
        glyphs.load(tmp_path)
    assert not os.listdir(tmp_path)


def test_attributes_share_one_input(glyph_dir: Path) -> None:
    family = GlyphAttributes(data_dir=glyph_dir)
    assert family.classes == {"script": 3, "case": 3, "weight": 2, "slant": 2, "family": 3}
    episodes = family.split("train").sample(512, rng())
    assert tuple(episodes) == TASKS
    x = episodes["script"].query.x
    assert x.shape == (512, 1, 28, 28) and x.is_floating_point() and 0.9 < x.max() <= 1
    for task, episode in episodes.items():
        assert isinstance(episode, Episode) and episode.support is None and episode.query.x is x
        assert episode.ways == family.classes[task]
        assert episode.query.y.unique().tolist() == list(range(family.classes[task]))
        output = torch.zeros(512, family.classes[task])
        assert family.loss[task](output, episode.query.y).shape == ()
        assert family.metrics[task]["accuracy"](output, episode.query.y).shape == (512,)
    again = family.split("train").sample(512, rng())
    assert torch.equal(again["case"].query.x, x)


def test_attributes_are_those_of_the_letters(drawn: Glyphs, glyph_dir: Path) -> None:
    family = GlyphAttributes(data_dir=glyph_dir)
    split = family.split("train")
    n = len(split.positions)
    episodes = split.sample(n, rng())
    order = split.positions[torch.randperm(n, generator=rng())]
    names = family.class_names
    for at in range(0, n, 97):
        letters = drawn.letters[int(drawn.labels[order[at]])]
        script = names["script"][int(episodes["script"].query.y[at])]
        case = names["case"][int(episodes["case"].query.y[at])]
        assert (script, case) in {(a.script, a.case) for a in letters}
    bold = episodes["weight"].query.y == 1
    ink = episodes["weight"].query.x.flatten(1).mean(1)
    assert ink[bold].mean() > 1.25 * ink[~bold].mean()
    with pytest.raises(ValueError, match=f"this split has {n}"):
        split.sample(n + 1, rng())


def test_attribute_splits_are_new_letters_of_known_scripts(drawn: Glyphs, glyph_dir: Path) -> None:
    family = GlyphAttributes(data_dir=glyph_dir, tasks=("weight", "script"))
    sets = [set(drawn.labels[family.split(name).positions].tolist()) for name in SPLITS]
    total = len(drawn.classes["train"])
    assert set().union(*sets) == set(drawn.classes["train"]) and sum(map(len, sets)) == total
    assert [len(s) / total for s in sets] == pytest.approx([0.8, 0.1, 0.1], abs=0.001)
    assert tuple(family.split("test").sample(8, rng())) == ("weight", "script")


@pytest.mark.parametrize("tasks", [("script", "colour"), (), ("case", "case")])
def test_unknown_attributes(tasks: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must be different names out of script, case"):
        GlyphAttributes(tasks=tasks)
