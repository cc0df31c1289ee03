"""Folders of images: what is read, when it is read, and what is rejected before."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metamtl import Episode
from metamtl.datasets.files import split_file
from metamtl.datasets.image_files import read_image
from metamtl.tasks import EpisodeLoader, ImageFolder, LazyFewShot, Sinusoid

Image = pytest.importorskip("PIL.Image")
SPLITS = {"train": ["ant", "bee", "cat"], "validation": ["dog", "emu"], "test": ["fox", "gnu"]}
COLORS = {name: 20 + 30 * i for i, name in enumerate(("ant", "bee", "cat", "dog", "emu", "fox", "gnu"))}


def save(path: Path, level: int, mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (level, level, level))
    (image.quantize(2) if mode == "P" else image.convert(mode)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven classes of four images, one gray level per class; of different sizes, modes and formats."""
    for name, level in COLORS.items():
        save(tmp_path / "own" / name / "0.png", level, "RGBA", (9, 30))
        save(tmp_path / "own" / name / "1.png", level, "L", (31, 7))
        save(tmp_path / "own" / name / "deep" / "2.png", level, "P")
        save(tmp_path / "own" / name / "3.bmp", level, "RGB", (8, 8))
        (tmp_path / "own" / name / ".hidden").write_bytes(b"of a file manager")
    (tmp_path / "own" / "README.txt").write_text("not of a class")
    return tmp_path / "own"


def leaves(episode: Episode) -> list[Tensor]:
    assert episode.support is not None and episode.task is not None
    return [episode.support.x, episode.support.y, episode.query.x, episode.query.y, episode.task]


def same(a: Episode, b: Episode) -> bool:
    return all(torch.equal(left, right) for left, right in zip(leaves(a), leaves(b)))


def test_images_of_all_sizes_and_modes(folder: Path) -> None:
    source = ImageFolder(folder, 2, 1, 3, size=10, splits=SPLITS)
    assert source.class_names == tuple(COLORS)
    for split, names in SPLITS.items():
        tasks = source.split(split)
        assert [source.class_names[i] for i in tasks.ids] == names
        episode = tasks.sample(3, torch.Generator().manual_seed(0))
        support, labels, query, _, task = leaves(episode)
        assert support.shape == (3, 2, 3, 10, 10) and query.shape == (3, 6, 3, 10, 10)
        levels = torch.tensor(list(COLORS.values()))[task]
        assert torch.equal((support[:, :, 0, 5, 5] * 255).round().long(), levels)
        assert torch.equal((query[:, :, 2, 0, 9] * 255).round().long(), levels.repeat_interleave(3, 1))
        assert labels.tolist() == 3 * [[0, 1]]
    gray = ImageFolder(folder, 2, 1, 3, size=10, splits=SPLITS, mode="L").split("test")
    assert gray.sample(1, torch.Generator()).query.x.shape == (1, 6, 1, 10, 10)


def test_pixels(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    assert torch.equal(read_image(path, 6), torch.from_numpy(pixels).movedim(-1, 0))
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = 200  # the square in the center
    Image.fromarray(wide).save(path)
    assert (read_image(path, 4) == 200).all()
    Image.fromarray(np.full((4, 4), 51 * 256 + 7, np.uint16)).save(path)
    assert (read_image(path, 4, "L") == 51).all()
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(path)
    assert (read_image(path, 4) == 255).all()
    upright = Image.new("RGB", (2, 2))
    upright.putpixel((0, 0), (255, 255, 255))
    exif = upright.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    upright.save(path, exif=exif)
    assert read_image(path, 2)[0].tolist() == [[0, 255], [0, 0]]


def jitter(image: Any) -> Any:
    return image.point(lambda value: value * float(torch.rand(())))


def test_the_number_of_workers_does_not_change_the_tasks(folder: Path) -> None:
    tasks = ImageFolder(folder, 2, 1, 2, size=8, splits=SPLITS, augment=jitter).split("train")

    def draw(step: int) -> Episode:
        return tasks.sample(2, torch.Generator().manual_seed(step))

    state = torch.random.get_rng_state()
    alone = list(EpisodeLoader(draw, range(3, 8)))
    two = list(EpisodeLoader(draw, range(3, 8), workers=2, device="cpu"))
    assert len(alone) == len(two) == 5 and all(same(a, b) for a, b in zip(alone, two))
    assert not same(alone[0], alone[1])
    assert same(alone[2], draw(5)) and torch.equal(state, torch.random.get_rng_state())


def test_training_images_are_augmented_and_others_are_not(folder: Path) -> None:
    source = ImageFolder(
        folder, 2, 1, 2, size=8, splits=SPLITS, augment=lambda image: image.point(lambda v: 0)
    )
    sample = {name: source.split(name).sample(2, torch.Generator().manual_seed(0)) for name in SPLITS}
    assert not sample["train"].query.x.any()
    assert sample["validation"].query.x.all() and sample["test"].query.x.all()
    wrong = ImageFolder(folder, 2, 1, 2, splits=SPLITS, augment=lambda image: 3).split("train")
    with pytest.raises(TypeError, match="augment returned a int; it must return a Pillow image"):
        wrong.sample(1, torch.Generator())


def test_images_are_read_when_they_are_drawn(folder: Path) -> None:
    tasks = ImageFolder(folder, 2, 1, 3, size=4, splits=SPLITS).split("test")
    for number in ("0.png", "1.png", "deep/2.png", "3.bmp"):
        for name in SPLITS["test"]:
            save(folder / name / number, 255)
    assert (tasks.sample(1, torch.Generator()).query.x == 1).all()
    assert len(pickle.dumps(tasks)) < 20_000  # what a worker receives holds no images
    (folder / "fox" / "0.png").write_bytes(b"damaged later")
    with pytest.raises(ValueError, match=r"fox/0\.png is damaged or is no image"):
        tasks.sample(20, torch.Generator().manual_seed(0))
    draw = lambda step: tasks.sample(20, torch.Generator())  # noqa: E731
    with pytest.raises(ValueError, match=r"fox/0\.png is damaged"):
        list(EpisodeLoader(draw, range(2), workers=1))


def test_damaged_files_are_named_together(folder: Path) -> None:
    (folder / "ant" / "0.png").write_bytes(b"no image")
    (folder / "gnu" / "1.png").write_bytes(b"")
    (folder / "emu" / "notes.txt").write_text("no image")
    message = r"3 files are damaged.*ant/0\.png \(unknown format\), .*emu/notes\.txt .*gnu/1\.png"
    with pytest.raises(ValueError, match=message):
        ImageFolder(folder, 2, 1, 2, splits=SPLITS).split("train")
    # Classes that are in no split are not used.
    few = {"train": ["bee", "cat"], "validation": ["dog"], "test": ["fox"]}
    ImageFolder(folder, 1, 1, 2, splits=few).split("train")


def test_the_full_check_decodes_every_image(folder: Path) -> None:
    path = folder / "bee" / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    ImageFolder(folder, 2, 1, 2, splits=SPLITS).split("train")
    with pytest.raises(ValueError, match=r"1 files are damaged.*bee/0\.png \(.*truncated"):
        ImageFolder(folder, 2, 1, 2, splits=SPLITS, check="full").split("train")


@pytest.mark.slow
def test_splits_by_fraction_file_and_folders(folder: Path, tmp_path: Path) -> None:
    parts = [ImageFolder(folder, splits=(0.4, 0.3, 0.3), seed=seed).classes for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert [len(names) for names in parts[0].values()] == [3, 2, 2]
    assert sorted(name for names in parts[0].values() for name in names) == list(COLORS)
    (tmp_path / "split.json").write_text(json.dumps(SPLITS))
    for path in (tmp_path / "split.json", str(tmp_path / "split.json")):
        assert ImageFolder(folder, splits=path).classes == SPLITS
    for part, names in SPLITS.items():
        part_folder = tmp_path / "tiered" / part.replace("idation", "")
        part_folder.mkdir(parents=True)
        for name in names:
            (folder / name).rename(part_folder / name)
    tiered = ImageFolder(tmp_path / "tiered", 2, 1, 3, size=8, splits="folders")
    assert tiered.classes == SPLITS
    assert tiered.split("validation").sample(1, torch.Generator()).query.x.shape == (1, 6, 3, 8, 8)
    save(tmp_path / "tiered" / "test" / "ant" / "0.png", 0)
    with pytest.raises(ValueError, match="class 'ant' is in 'train' and in 'test'"):
        ImageFolder(tmp_path / "tiered", splits="folders").split("train")


def test_mini_imagenet(tmp_path: Path) -> None:
    split = split_file("mini_imagenet")
    assert [len(names) for names in split.values()] == [64, 16, 20]
    for names in split.values():
        for name in names:
            save(tmp_path / name / "0.png", 9, size=(1, 1))
            save(tmp_path / name / "1.png", 9, size=(1, 1))
    mini = ImageFolder(tmp_path, 5, 1, 1, splits="mini_imagenet")
    assert mini.split("train").sample(1, torch.Generator()).query.x.shape == (1, 5, 3, 84, 84)
    assert [mini.class_names[i] for i in mini.split("test").ids] == split["test"]
    (tmp_path / split["test"][0]).rename(tmp_path / "n00000000")
    with pytest.raises(ValueError, match=rf"'mini_imagenet' has the classes {split['test'][0]}, which"):
        ImageFolder(tmp_path, splits="mini_imagenet").split("train")


def bad_folders(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    yield {"folder": folder / "absent"}, "absent is not a folder; pass a folder with one subfolder"
    yield {"folder": folder / "ant" / "deep"}, "has no subfolders"
    (folder / "hen").mkdir()
    yield {}, "no files in hen; add images or remove"
    (folder / "hen").rmdir()
    yield {"splits": (0.5, 0.5)}, "pass the fractions"
    yield {"splits": (0.9, 0.05, 0.05)}, "has 7 classes, so that a split has none"
    yield {"splits": {"train": ["ant"]}}, "splits has train; it must have train, validation, test"
    yield {"splits": SPLITS | {"test": ["ant"]}}, "class 'ant' is in 'train' and in 'test'"
    yield {"splits": SPLITS | {"test": ["ape", "elk"]}}, "has the classes ape, elk, which .* does not have"
    yield {"splits": SPLITS | {"test": []}}, "'test' has no classes"
    yield {"splits": SPLITS | {"test": "ant"}}, "must be a list of class names"
    yield {"splits": "folders"}, "no subfolder train, which splits='folders' needs"
    yield {"splits": "meta_imagenet"}, "no data file 'splits/meta_imagenet.json'"
    yield {"splits": folder / "absent.json"}, "absent.json"
    (folder / "list.json").write_text("[]")
    yield {"splits": folder / "list.json"}, "has a list, not a mapping"
    (folder / "list.json").write_text("{")
    yield {"splits": folder / "list.json"}, "is not a JSON file"
    yield {"shots": 3}, "3 shots .*but class 'ant' has 4, class 'bee' has 4"
    yield {"ways": 4}, "4-way tasks need 4 classes, but there are 3"
    yield {"mode": "CMYK"}, "mode='CMYK' is not"
    yield {"check": "all"}, "check='all' is not"
    yield {"size": 0}, "size=0"


def test_bad_folders_are_named_before_a_task_is_drawn(folder: Path) -> None:
    for options, message in bad_folders(folder):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            ImageFolder(**{"folder": folder, "ways": 2, "queries": 2, "splits": SPLITS, **options}).split(
                "train"
            )


def test_pillow_is_optional(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"requires Pillow: pip install 'metamtl\[images\]'"):
        ImageFolder(folder, 2, 1, 2, splits=SPLITS).split("train")


def test_lazy_tasks_of_any_kind() -> None:
    ids = torch.arange(40).view(20, 2)
    tasks = LazyFewShot(lambda i, seed: ids[i], ["even", "odd"] * 10, ways=2, shots=2, queries=3)
    episode = tasks.sample(3, torch.Generator().manual_seed(0))
    assert episode.query.x.dtype == torch.int64 and tasks.class_names == ("even", "odd")
    assert torch.equal(episode.query.x[..., 0] // 2 % 2, episode.task.repeat_interleave(3, 1))  # type: ignore[union-attr]
    ragged = LazyFewShot(lambda i, seed: torch.zeros(i), [0, 0, 1, 1], ways=2, queries=1)
    with pytest.raises(ValueError, match="examples have different shapes or dtypes"):
        ragged.sample(1, torch.Generator())


def test_loader_of_any_source() -> None:
    waves = Sinusoid(shots=5).split("train")
    draw = lambda step: {"wave": waves.sample(2, torch.Generator().manual_seed(step))}  # noqa: E731
    found = list(EpisodeLoader(draw, [4, 2], workers=1, device="cpu"))
    assert torch.equal(found[1]["wave"].query.x, draw(2)["wave"].query.x)
    for options in ({"workers": -1}, {"prefetch": 0}):
        with pytest.raises(ValueError, match="at least"):
            EpisodeLoader(draw, range(3), **options)
