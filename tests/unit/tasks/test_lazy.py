"""Data sets whose items are read when they are drawn: the same tasks as from memory, in any process."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from metamtl import Episode
from metamtl.tasks import EpisodeLoader, FewShot, LazyFewShot

LABELS = [i // 6 for i in range(24)]
DRAW = np.random.default_rng(0)
ITEMS = {
    "gray images": DRAW.integers(0, 256, (24, 5, 5), dtype=np.uint8),
    "color images": DRAW.integers(0, 256, (24, 3, 5, 5), dtype=np.uint8),
    "16 bits": DRAW.integers(0, 65536, (24, 5, 5), dtype=np.uint16),
    "black and white": DRAW.integers(0, 2, (24, 5, 5)).astype(bool),
    "bytes": DRAW.integers(0, 256, (24, 7), dtype=np.uint8),
    "flags": DRAW.integers(0, 2, (24, 7)).astype(bool),
    "tokens": DRAW.integers(0, 999, (24, 7)),
    "time series": DRAW.normal(size=(24, 5, 5)),
}


class Pairs(Dataset[Any]):
    """Pairs, with the attributes of torchvision's data sets; `transform` is applied to each item."""

    classes = ("ant", "bee", "cat", "dog")
    targets = LABELS

    def __init__(self, values: np.ndarray, transform: Callable[[Any], Any] = lambda x: x) -> None:
        self.values, self.transform = values, transform

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.values[index]), LABELS[index]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(a: Episode, b: Episode) -> None:
    assert a.support is not None and b.support is not None and a.ways == b.ways
    for left, right in zip((*a.support, *a.query, a.task), (*b.support, *b.query, b.task)):
        assert left.dtype == right.dtype and torch.equal(left, right)


@pytest.mark.parametrize("kind", ITEMS)
@pytest.mark.parametrize("queries", [0, 3])
def test_the_tasks_are_those_from_memory(kind: str, queries: int) -> None:
    options: dict[str, Any] = {"ways": 3, "shots": 2, "queries": queries, "classes": [0, 1, 3]}
    memory = FewShot.from_dataset(Pairs(ITEMS[kind]), **options)
    lazy = LazyFewShot.from_dataset(Pairs(ITEMS[kind]), **options)
    assert_same(lazy.sample(4, rng()), memory.sample(4, rng()))
    assert lazy.class_names == memory.class_names == Pairs.classes and lazy.ids == memory.ids


def noise_torch(x: np.ndarray) -> Tensor:
    return torch.as_tensor(x) + torch.rand(x.shape)


def noise_numpy(x: np.ndarray) -> np.ndarray:
    return x + np.random.rand(*x.shape)


def noise_python(x: np.ndarray) -> np.ndarray:
    return x + random.random()


@pytest.mark.parametrize("noise", [noise_torch, noise_numpy, noise_python])
def test_random_transforms_depend_on_the_generator_alone(noise: Callable[[Any], Any]) -> None:
    tasks = LazyFewShot.from_dataset(Pairs(ITEMS["time series"], noise), ways=2, shots=1, queries=2)

    def draw(step: int) -> Episode:
        return tasks.sample(2, rng(step))

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr]
    alone = list(EpisodeLoader(draw, range(3)))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr]
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    for one, other in zip(alone, EpisodeLoader(draw, range(3), workers=2)):
        assert_same(one, other)
    plain = LazyFewShot.from_dataset(Pairs(ITEMS["time series"]), ways=2, shots=1, queries=2)
    assert alone[0].support is not None
    added = alone[0].query.x - plain.sample(2, rng(0)).query.x
    assert float(added.min()) > 0 and float(added.max()) < 1 and len(added[:, :, 0, 0].unique()) == 8


def test_items_are_read_when_they_are_drawn() -> None:
    read: list[int] = []

    def seen(x: np.ndarray) -> np.ndarray:
        read.append(1)
        return x

    tasks = LazyFewShot.from_dataset(Pairs(ITEMS["bytes"], seen), ways=2, shots=1, queries=2)
    assert not read
    tasks.sample(3, rng())
    assert len(read) == 3 * 2 * 3


def test_labels_and_images_of_ones_own() -> None:
    items = [{"pixels": torch.full((2,), float(i))} for i in range(24)]
    names = ["odd" if i % 2 else "even" for i in range(24)]
    tasks = LazyFewShot.from_dataset(items, names, image=lambda item: item["pixels"], ways=2, queries=3)
    episode = tasks.sample(2, rng())
    assert tasks.class_names == ("even", "odd") and episode.task is not None
    assert torch.equal(episode.query.x[..., 0].long() % 2, episode.task.repeat_interleave(3, 1))


class Renamed(Pairs):
    target_transform = str


class Endless(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


def broken(x: np.ndarray) -> np.ndarray:
    raise OSError("disk on fire")


@pytest.mark.parametrize(
    ("dataset", "labels", "error", "message"),
    [
        (TensorDataset(torch.zeros(24, 2)), None, TypeError, "no attribute targets.* pass labels="),
        (
            Renamed(ITEMS["bytes"]),
            None,
            TypeError,
            "a target_transform, which is not .* pass labels=",
        ),
        (TensorDataset(torch.zeros(24, 2)), LABELS[:9], ValueError, "24 items, but there are 9 labels"),
        (DataLoader(Pairs(ITEMS["bytes"])), None, TypeError, "whose items are batches"),
        (Endless(), LABELS, TypeError, "no length or no integer indices"),
        ([], [], ValueError, "the list is empty"),
        (Pairs(ITEMS["bytes"], broken), None, ValueError, r"item \d+ of the Pairs cannot be read: OSError"),
    ],
)
def test_what_cannot_be_read_is_named(
    dataset: Any, labels: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LazyFewShot.from_dataset(dataset, labels, ways=2, queries=2).sample(1, rng())
