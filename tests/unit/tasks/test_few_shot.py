"""FewShot: what is drawn, how it is laid out, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metamtl.tasks.few_shot import FewShot

PER_CLASS = 12
LABELS = np.repeat([3, 7, 40, 41, 90, 7_000], PER_CLASS)  # no contiguous labels
# Every example is a number of its own, so that a picture tells which example it is.
NUMBERS = torch.arange(len(LABELS), dtype=torch.float32)
POINTS = NUMBERS[:, None].expand(-1, 2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def squares(dtype: type = np.uint8, channels: tuple[int, ...] = ()) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(LABELS), *channels, 4, 4)).astype(dtype)


def test_bytes_become_parts_of_one() -> None:
    images = squares()
    x = FewShot(images, LABELS, ways=2, queries=5).sample(3, rng()).query.x
    assert x.shape == (3, 10, 1, 4, 4) and x.dtype == torch.get_default_dtype()
    pictures = torch.from_numpy(images).float().div(255)
    assert bool((pictures[None] == x.flatten(0, 2)[:, None]).all((-2, -1)).any(1).all())


def test_booleans_and_floats_keep_their_values() -> None:
    ink = FewShot(squares() > 99, LABELS, ways=2, queries=5).sample(3, rng()).query.x
    assert ink.unique().tolist() == [0.0, 1.0]
    values = FewShot(squares(np.float64), LABELS, ways=2, queries=5).sample(3, rng()).query.x
    assert values.dtype == torch.float64 and values.max() > 1


def test_read_only_arrays_are_taken() -> None:
    images = squares(channels=(3,))
    images.flags.writeable = False
    assert FewShot(images, LABELS, ways=2, queries=5).sample(3, rng()).query.x.shape == (3, 10, 3, 4, 4)


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


def test_rotated_classes_are_classes_of_their_own() -> None:
    images = squares(np.float32)
    source = FewShot(images, LABELS, ways=20, shots=1, queries=2, rotations="classes")
    stride = 7_000 + 1
    assert source.ids == [c + k * stride for k in range(4) for c in [3, 7, 40, 41, 90, 7_000]]
    episode = source.sample(5, rng())
    assert episode.task is not None and episode.support is not None
    for t in range(5):
        assert len(set(episode.task[t].tolist())) == 20
        for n, number in enumerate(episode.task[t].tolist()):
            turns, label = divmod(number, stride)
            wanted = torch.from_numpy(images[label == LABELS]).rot90(turns, (-2, -1))
            assert bool((wanted == episode.support.x[t, n]).all((-2, -1)).any())


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


def test_from_dataset_of_pillow_images() -> None:
    image = pytest.importorskip("PIL.Image")
    pairs = [(image.fromarray(x), int(y)) for x, y in zip(squares(), LABELS)]
    assert FewShot.from_dataset(pairs, ways=3, queries=5).images.shape == (len(LABELS), 4, 4)


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
        ({"shots": 0}, "shots=0"),
        ({"rotations": "half"}, "rotations='half' is not one of"),
        ({"rotations": "classes"}, r"square images, found shape \[72, 2\]"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family(**options)


def test_a_label_for_each_image() -> None:
    with pytest.raises(ValueError, match=r"images have shape \[72, 2\], labels \[71\]"):
        FewShot(POINTS, LABELS[1:])
