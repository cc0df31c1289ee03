"""Batch and Episode: indexing, moving, and the checks of shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metamtl import Batch, Episode


def batch(tasks: int, examples: int, width: int = 2) -> Batch:
    x = torch.arange(tasks * examples * width, dtype=torch.float32).view(tasks, examples, width)
    return Batch(x, x[..., :1])


def test_an_index_takes_tasks_from_every_tensor() -> None:
    episode = Episode(batch(4, 3), batch(4, 5), torch.tensor([7, 8, 9, 10]), ways=2)
    one, two = episode[1], episode[torch.tensor([3, 0])]
    assert one.query.x.shape == (5, 2) and one.support.y.shape == (3, 1)
    assert int(one.task) == 8 and one.ways == 2
    assert two.num_tasks == 2 and two.task.tolist() == [10, 7]
    assert torch.equal(two.query.x[0], episode.query.x[3])
    assert episode[1:3].num_tasks == 2 and episode.num_tasks == 4


def test_map_reaches_nested_inputs_and_leaves_the_rest() -> None:
    x = {"ids": torch.zeros(3, 4), "pair": (torch.ones(3, 4, 2), torch.ones(3, 4))}
    episode = Episode(None, Batch(x, torch.zeros(3, 4)))
    found = episode.map(lambda leaf: leaf + 1)
    assert found.support is None and found.task is None
    assert float(found.query.x["pair"][0].max()) == 2 and float(x["pair"][0].max()) == 1
    assert isinstance(found.query, Batch)


def test_to_casts_or_moves_every_tensor() -> None:
    episode = Episode(batch(2, 3), batch(2, 3)).to(torch.float64)
    assert episode.support.x.dtype == episode.query.y.dtype == torch.float64
    moved = Episode(batch(2, 3), batch(2, 3), torch.zeros(2)).to("meta")
    assert {moved.support.x.device.type, moved.query.y.device.type, moved.task.device.type} == {"meta"}


def test_a_plain_tuple_serves_as_a_batch() -> None:
    x = torch.zeros(2, 3, 1)
    episode = Episode((x, x), (x, x))  # type: ignore[arg-type]
    episode.check()
    assert episode.num_tasks == 2 and episode[0].query[0].shape == (3, 1)


@pytest.mark.parametrize(
    ("support", "query"),
    [
        (batch(4, 3), batch(4, 5)),
        (None, batch(4, 5)),
        (None, Batch(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, dtype=torch.long))),
        (None, Batch((torch.zeros(2, 3), torch.zeros(2, 3, 4)), torch.zeros(2, 3))),
    ],
)
def test_what_fits_is_let_through(support: Batch | None, query: Batch) -> None:
    Episode(support, query).check()


X: Tensor = torch.zeros(4, 3, 2)


@pytest.mark.parametrize(
    ("episode", "words"),
    [
        (
            Episode(None, Batch(X, X[:, :2])),
            [r"query: x and y", r"\[4, 3, 2\], \[4, 2, 2\]", r"\[T, examples"],
        ),
        (Episode(Batch(X, X[:2]), Batch(X, X)), [r"support: x and y", r"\[2, 3, 2\]"]),
        (Episode(None, Batch(X, X[:, 0, 0])), [r"query", r"\[4\]"]),
        (Episode(None, Batch((X, X[:, :1]), X)), [r"\[4, 1, 2\]"]),
        (Episode(Batch(X[:3], X[:3]), Batch(X, X)), [r"support.x has shape \[3, 3, 2\]", r"\[4, 3, 2\]"]),
        (
            Episode(Batch(X[..., :1], X), Batch(X, X)),
            [r"\[4, 3, 1\]", r"\[4, 3, 2\]", "number of examples"],
        ),
        (Episode(Batch(X.double(), X), Batch(X, X)), [r"float64", r"float32"]),
        (
            Episode(Batch(X.to("meta"), X.to("meta")), Batch(X, X)),
            ["support is on meta", "query on cpu", "to\\("],
        ),
        (Episode(None, Batch(X, X), torch.zeros(3)), [r"task has shape \[3\]", "4 tasks"]),
        (Episode(None, Batch((), ())), ["at least one tensor"]),
    ],
)
def test_what_does_not_fit_is_refused_with_both_shapes(episode: Episode, words: list[str]) -> None:
    for word in words:
        with pytest.raises(ValueError, match=word):
            episode.check()


def test_a_named_task_is_checked_without_a_task_axis() -> None:
    Episode(Batch(X, X), Batch(X[:2], X[:2])).check(named="case")
    with pytest.raises(ValueError, match=r"task 'case': query: .*\[4, 3, 2\], \[2, 3, 2\].*\[examples"):
        Episode(None, Batch(X, X[:2])).check(named="case")
