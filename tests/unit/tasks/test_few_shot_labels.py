"""FewShot: labels, class names, and what is rejected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metamtl.tasks.draws import distinct
from metamtl.tasks.few_shot import FewShot

from .few_shot_examples import LABELS, POINTS, rng


def test_a_label_for_each_image() -> None:
    with pytest.raises(ValueError, match=r"images have shape \[72, 2\], labels \[71\]"):
        FewShot(POINTS, LABELS[1:])


NAMES = np.array(["eel", "cat", "ant", "dog"])


@pytest.mark.parametrize("kind", ["array", "list", "numpy strings", "bytes", "object array"])
def test_strings_as_labels(kind: str) -> None:
    labels = np.repeat(NAMES, 5)
    given: Any = {
        "array": labels,
        "list": labels.tolist(),
        "numpy strings": list(labels),
        "bytes": labels.astype(bytes),
        "object array": labels.astype(object),
    }[kind]
    source = FewShot(POINTS[:20], given, ways=2, shots=1, queries=2)
    assert source.class_names == ("ant", "cat", "dog", "eel") and source.ids == [0, 1, 2, 3]
    episode = source.sample(50, rng())
    assert episode.task is not None
    drawn = episode.query.x[..., 0].long()
    of_class = np.array(source.class_names)[episode.task.gather(1, episode.query.y).numpy()]
    assert (labels[drawn.numpy()] == of_class).all()
    chosen = FewShot(POINTS[:20], given, ways=2, shots=1, queries=2, classes=["eel", np.str_("cat")])
    assert chosen.ids == [3, 1]
    with pytest.raises(ValueError, match="class 'cow' in classes is not among the labels"):
        FewShot(POINTS[:20], given, ways=2, shots=1, queries=2, classes=["eel", "cow"])
    with pytest.raises(ValueError, match="class 'ant' has 5, class 'cat' has 5"):
        FewShot(POINTS[:20], given, ways=2, shots=1, queries=5)


def test_class_names_fix_the_ids_of_strings() -> None:
    options: dict[str, Any] = {"ways": 2, "shots": 1, "queries": 2, "class_names": NAMES.tolist()}
    train = FewShot(POINTS[:10], ["eel"] * 5 + ["dog"] * 5, **options)
    test = FewShot(POINTS[:10], ["cat"] * 5 + ["ant"] * 5, **options)
    assert train.ids == [0, 3] and test.ids == [1, 2]
    with pytest.raises(ValueError, match=r"labels \['cow'\] are not in class_names"):
        FewShot(POINTS[:10], ["eel"] * 5 + ["cow"] * 5, **options)


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: y.astype(np.float64),
        lambda y: torch.from_numpy(y).float(),
        lambda y: torch.from_numpy(y).to(torch.bfloat16),
        lambda y: list(y),
        lambda y: [torch.tensor(v) for v in y],
        lambda y: [float(v) for v in y],
        lambda y: y.astype(np.uint8),
        lambda y: iter(y.tolist()),
    ],
)
def test_whole_numbers_as_labels(convert: Any) -> None:
    labels = np.repeat([3, 7, 40], 5)
    source = FewShot(POINTS[:15], convert(labels), ways=2, shots=1, queries=2, classes=[np.int64(40), 3.0])
    assert source.ids == [40, 3]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0.0, 0.5, 1.0]), "label 1 is 0.5, which is not a class"),
        (torch.tensor([0.0, 1.0, float("nan")]), "label 2 is nan, which is not a class"),
        ([0.0, float("inf"), 1.0], "label 1 is inf"),
        (["cat", 1, "dog"], "label 1 is 1, but others are strings"),
        (np.array(["cat", None, "dog"], object), "label 1 is None, but others are strings"),
        ([0, None, 1], "labels are NoneType, int"),
        ([(0, 1), (1, 0), (0, 0)], r"labels \[3, 2\]"),
    ],
)
def test_labels_that_are_no_classes(labels: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FewShot(POINTS[:3], labels, ways=2, shots=1, queries=1)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([np.zeros(3), np.zeros(4)], ValueError, "images has rows of different shapes"),
        ([torch.zeros(3), torch.zeros(4)], ValueError, r"different shapes or types: \[3\].*\[4\]"),
        (["a text", "another"], TypeError, "images holds .* not numbers; encode"),
        ([Image.new("L", (4, 4))] * 2, TypeError, "from_dataset"),
    ],
)
def test_examples_that_are_no_numbers_of_one_shape(images: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FewShot(images, [0, 1], ways=2, shots=1, queries=1)


@pytest.mark.parametrize("sizes", [[5, 5, 9], [16, 17, 40]])
def test_subsets_are_uniform_and_in_random_order(sizes: list[int]) -> None:
    found = distinct(torch.tensor(sizes).expand(20_000, 3), 5, rng())
    assert found.shape == (20_000, 3, 5) and int(found.min()) == 0
    for column, size in enumerate(sizes):
        drawn = found[:, column]
        assert all(len(set(row)) == 5 for row in drawn[:500].tolist())
        for place in range(5):  # each number is equally likely in every place
            counts = torch.bincount(drawn[:, place], minlength=size).double() / 20_000
            assert len(counts) == size and float((counts * size - 1).abs().max()) < 0.2
        first_pair = torch.bincount(drawn[:, 0] * size + drawn[:, 1], minlength=size * size)
        pairs = first_pair.view(size, size)[~torch.eye(size, dtype=torch.bool)].double()
        chi2 = float(((pairs - pairs.mean()) ** 2 / pairs.mean()).sum())
        assert chi2 < stats.chi2.ppf(1 - 1e-6, len(pairs) - 1)


def test_a_large_class_costs_neither_time_nor_memory() -> None:
    """Work is counted, not timed: no tensor that a sample makes grows with the class."""
    labels = torch.cat([torch.zeros(200_000).long(), torch.arange(1, 101).repeat_interleave(20)])
    source = FewShot(torch.zeros(len(labels), 1), labels, ways=5, shots=1, queries=15)
    with Largest() as largest:
        source.sample(8, rng())
    assert largest.size <= 8 * 5 * 16 * 16 and source._starts.numel() == 101


class Largest(TorchDispatchMode):
    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.size = max(self.size, found.numel())
        return found
