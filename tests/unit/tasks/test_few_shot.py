"""FewShot: what is drawn, how it is laid out, what is refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from metamtl.tasks.few_shot import FewShot

from .few_shot_examples import LABELS, PER_CLASS, POINTS, rng, squares


def family(**options: Any) -> FewShot:
    return FewShot(POINTS, LABELS, **{"ways": 4, "shots": 2, "queries": 3, **options})


def test_shapes_and_order_of_the_labels() -> None:
    episode = family().sample(5, rng())
    episode.check()
    assert episode.support is not None and episode.ways == 4
    assert episode.support.x.shape == (5, 8, 2) and episode.query.x.shape == (5, 12, 2)
    assert episode.support.y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 5
    assert episode.query.y.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]] * 5


@pytest.mark.parametrize("queries", [3, PER_CLASS - 2])
def test_examples_are_distinct_and_of_the_classes_that_task_names(queries: int) -> None:
    episode = family(queries=queries).sample(200, rng())
    assert episode.support is not None and episode.task is not None
    for t in range(200):
        assert len(set(episode.task[t].tolist())) == 4
        drawn = torch.cat([episode.support.x[t, :, 0], episode.query.x[t, :, 0]]).long()
        assert len(set(drawn.tolist())) == len(drawn)  # support and query share nothing either
        labels = torch.cat([episode.support.y[t], episode.query.y[t]])
        assert torch.equal(torch.from_numpy(LABELS)[drawn], episode.task[t][labels])


def test_all_classes_and_examples_come_up_about_equally_often() -> None:
    episode = family().sample(3_000, rng())
    assert episode.task is not None
    classes = episode.task.flatten().unique(return_counts=True)[1]
    assert classes.tolist() == pytest.approx([2_000] * 6, rel=0.06)
    examples = episode.query.x[..., 0].flatten().unique(return_counts=True)[1]
    assert examples.tolist() == pytest.approx([500] * len(LABELS), rel=0.2)


def test_only_the_classes_named() -> None:
    chosen = family(classes=[90, 3, 90, 7_000], ways=3)
    assert chosen.ids == [90, 3, 7_000]
    task = chosen.sample(50, rng()).task
    assert task is not None and set(task.flatten().tolist()) == {3, 90, 7_000}


def test_classes_of_unequal_size_draw_only_their_own() -> None:
    labels = [0] * 3 + [1] * 9
    episode = FewShot(POINTS[:12], labels, ways=2, shots=1, queries=2).sample(300, rng())
    assert episode.support is not None and episode.task is not None
    drawn = episode.query.x[..., 0]
    of_class = episode.task.gather(1, episode.query.y)
    assert bool(((drawn < 3) == (of_class == 0)).all())
    assert drawn.unique().numel() == 12


def test_the_generator_alone_decides() -> None:
    source = family()
    torch.manual_seed(1)
    one = source.sample(6, rng(5))
    torch.manual_seed(2)
    two, other = source.sample(6, rng(5)), source.sample(6, rng(6))
    assert torch.equal(one.query.x, two.query.x) and not torch.equal(one.query.x, other.query.x)
    state = torch.get_rng_state()
    source.sample(2, rng())
    assert torch.equal(state, torch.get_rng_state())


def turned(picture: Tensor) -> list[Tensor]:
    return [picture.rot90(k, (-2, -1)) for k in range(4)]


def test_rotations_per_episode_turn_a_class_as_one() -> None:
    images = squares(np.float32)
    plain = FewShot(images, LABELS, ways=3, shots=2, queries=3)
    turning = FewShot(images, LABELS, ways=3, shots=2, queries=3, rotations="episode")
    flat, episode = plain.sample(40, rng(1)), turning.sample(40, rng(1))
    assert flat.support is not None and episode.support is not None
    seen = set()
    for t in range(40):
        for n in range(3):
            before = torch.cat([flat.support.x[t][2 * n : 2 * n + 2], flat.query.x[t][3 * n : 3 * n + 3]])
            after = torch.cat(
                [episode.support.x[t][2 * n : 2 * n + 2], episode.query.x[t][3 * n : 3 * n + 3]]
            )
            turns = [k for k, x in enumerate(turned(before)) if torch.equal(x, after)]
            assert len(turns) == 1  # all five pictures by the same turn
            seen.update(turns)
    assert seen == {0, 1, 2, 3}
    assert flat.task is not None and episode.task is not None and torch.equal(flat.task, episode.task)


@pytest.mark.parametrize("shift", [0, -50])
def test_rotated_classes_are_classes_of_their_own(shift: int) -> None:
    images = squares(np.float32)
    labels = LABELS + shift  # some of them negative
    source = FewShot(images, labels, ways=6, shots=1, queries=2, rotations="classes")
    assert source.ids == [4 * c + turns for turns in range(4) for c in np.unique(labels).tolist()]
    task = source.sample(100, rng()).task
    assert task is not None and set(task.flatten().tolist()) == set(source.ids)
    episode = source.sample(5, rng())
    assert episode.task is not None and episode.support is not None
    for t in range(5):
        for n, number in enumerate(episode.task[t].tolist()):
            label, turns = divmod(number, 4)
            wanted = torch.from_numpy(images[label == labels]).rot90(turns, (-2, -1))
            assert bool((wanted == episode.support.x[t, n]).all((-2, -1)).any())


def test_no_task_holds_a_class_under_two_rotations() -> None:
    task = FewShot(squares(), LABELS, ways=4, queries=2, rotations="classes").sample(200, rng()).task
    assert task is not None and all(len(set(ids)) == 4 for ids in (task // 4).tolist())
    with pytest.raises(
        ValueError, match=r"7-way tasks need 7 classes, but there are 6;.*one rotation only"
    ):
        FewShot(squares(), LABELS, ways=7, rotations="classes", queries=2)


def test_ids_of_rotated_classes_do_not_depend_on_the_split() -> None:
    ids: list[int] = []
    for classes in ([3, 7], [40, 41], [90, 7_000]):
        rows = np.isin(LABELS, classes)
        ids += FewShot(squares()[rows], LABELS[rows], ways=2, queries=2, rotations="classes").ids
    assert len(set(ids)) == len(ids) == 24


@pytest.mark.parametrize("tensors", [False, True])
def test_from_dataset(tensors: bool) -> None:
    images = squares()
    pairs = [(torch.from_numpy(x) if tensors else x, int(y)) for x, y in zip(images, LABELS)]
    direct = FewShot(images, LABELS, ways=3, queries=5).sample(4, rng())
    paired = FewShot.from_dataset(pairs, ways=3, queries=5).sample(4, rng())
    assert torch.equal(direct.query.x, paired.query.x)
    rows = [{"class": int(y)} for y in LABELS]
    records = [(x, row) for x, row in zip(images, rows)]
    named = FewShot.from_dataset(records, label=lambda item: item[1]["class"], ways=3, queries=5)
    assert torch.equal(direct.query.x, named.sample(4, rng()).query.x)


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("L", (4, 4)),
        ("1", (4, 4)),
        ("RGB", (3, 4, 4)),
        ("RGBA", (4, 4, 4)),
        ("LA", (2, 4, 4)),
        ("I;16", (4, 4)),
    ],
)
def test_images_of_pillow_come_channels_first(mode: str, shape: tuple[int, ...]) -> None:
    gray = [Image.fromarray(x) for x in squares()]
    pairs = [(x.convert(mode), int(y)) for x, y in zip(gray, LABELS)]
    source = FewShot.from_dataset(pairs, ways=3, queries=5)
    assert source.images.shape == (len(LABELS), *shape)
    first = torch.from_numpy(np.asarray(pairs[0][0]).astype(np.int64))
    assert torch.equal(source.images[0].long(), first if first.dim() == 2 else first.permute(2, 0, 1))
    x = source.sample(2, rng()).query.x
    assert x.shape[2:] == (shape if len(shape) == 3 else (1, *shape))
    assert x.is_floating_point() and float(x.min()) >= 0 and float(x.max()) <= 1


class Broken(Dataset):
    """A data set one item of which cannot be read."""

    classes = ["cat", "dog"]  # noqa: RUF012  as torchvision has it

    def __init__(self, index: int = -1, item: Any = None) -> None:
        self.index, self.item = index, item

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        if index == self.index and isinstance(self.item, Exception):
            raise self.item
        return self.item if index == self.index else (Image.new("RGB", (4, 4)), int(index > 8))


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(3), 0


def truncated() -> Any:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:200]))


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        (Broken(5, OSError("file cat/5.png is damaged")), ValueError, "item 5 of the Broken .*cat/5.png"),
        (Broken(5, (truncated(), 0)), ValueError, "item 5 of the Broken cannot be read: "),
        (
            Broken(5, (Image.new("L", (4, 4)), 0)),
            ValueError,
            r"item 5 .* shape \[4, 4\].*item 0 has \[3, 4, 4\].*convert\('RGB'\)",
        ),
        (Broken(5, (Image.new("RGB", (4, 5)), 0)), ValueError, r"item 5 .* shape \[3, 5, 4\].*resize"),
        (Broken(5, (torch.zeros(3, 4, 4), 0)), ValueError, r"item 5 .*torch.float32.*torch.uint8"),
        (Broken(5, (Image.new("P", (4, 4)), 0)), ValueError, "item 5 .* palette"),
        (
            Broken(5, {"image": 0, "label": 1}),
            TypeError,
            "item 5 .*dict with the keys image, label.*image=lambda",
        ),
        (Broken(5, (torch.zeros(3, 4, 4),)), TypeError, "item 5 .*label=lambda"),
        (Broken(5, ({"pixels": 0}, 1)), TypeError, "item 5 .*the image is a dict; pass image=lambda"),
        (Broken(5, ("cat.png", 1)), TypeError, "item 5 .*the image holds .* not numbers"),
        ([], ValueError, "the list is empty"),
        (Stream(), TypeError, r"a Stream, which has no length .*list\(dataset\)"),
        (DataLoader(Broken()), TypeError, "a DataLoader, whose items are batches; .*dataloader.dataset"),
        ({"train": [1]}, TypeError, "got a dict"),
    ],
)
def test_data_sets_that_cannot_be_read(dataset: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FewShot.from_dataset(dataset, ways=2, shots=1, queries=1)


def test_items_that_are_dicts() -> None:
    items = [{"image": x, "label": str(y)} for x, y in zip(squares(), LABELS)]
    source = FewShot.from_dataset(
        items, image=lambda item: item["image"], label=lambda item: item["label"], ways=3, queries=5
    )
    direct = FewShot(squares(), [str(y) for y in LABELS], ways=3, queries=5)
    assert torch.equal(source.sample(4, rng()).query.x, direct.sample(4, rng()).query.x)


def test_a_class_with_too_few_images_is_named_as_the_data_set_names_it() -> None:
    with pytest.raises(ValueError, match="class 'dog' has 3;"):
        FewShot.from_dataset(Broken(), ways=2, shots=1, queries=5)


def test_too_few_examples_names_the_class_and_the_numbers() -> None:
    labels = np.where(np.arange(len(LABELS)) < 8, 3, LABELS)
    labels[8:12] = 7
    with pytest.raises(ValueError, match=r"5 shots \+ 5 queries need 10 .* class 3 has 8;"):
        FewShot(POINTS, labels, ways=2, shots=5, queries=5)
    with pytest.raises(ValueError, match="class 5 has 0"):
        family(classes=[3, 7, 40, 5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 7}, "7-way tasks need 7 classes, but there are 6"),
        ({"ways": 3, "classes": [3, 7]}, "there are 2"),
        ({"ways": 2, "classes": []}, "there are 0"),
        ({"shots": -1}, "shots=-1.*neither number may be negative"),
        ({"queries": -1}, "queries=-1.*neither number may be negative"),
        ({"rotations": "half"}, "rotations='half' is not one of"),
        ({"rotations": "classes"}, r"square images, but images have shape \[72, 2\]"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family(**options)
