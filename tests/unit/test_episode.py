"""Batch and Episode: indexing, moving, and the checks of shapes."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from metamtl import Batch, Episode, Inputs
from metamtl.episode import as_episode


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
        (Episode(None, Batch((X[:, :2], X[:, :1]), X)), [r"\[4, 1, 2\]", "at least one tensor of x"]),
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


NODES, EDGES, Y = torch.zeros(4, 6, 2), torch.zeros(4, 2, 9).long(), torch.zeros(4, 6)


@pytest.mark.parametrize(
    "x",
    [
        (NODES, EDGES),
        {"edges": EDGES, "nodes": NODES},
        Inputs((EDGES,), {"x": NODES}),
        (NODES, torch.zeros(4)),
        {"x": NODES, "mode": "mean", "scale": 2.0, "mask": None},
    ],
)
def test_tensors_without_an_axis_of_examples(x: Any) -> None:
    episode = Episode(Batch(x, Y), Batch(x, Y))
    episode.check()
    assert episode.num_tasks == 4
    episode[0].check(named="case")  # a number per task has no axis at all there
    assert isinstance(episode[0].query.x, type(x))


def test_support_and_query_may_have_other_numbers_of_edges() -> None:
    x = (NODES[:, :3], torch.zeros(4, 2, 5).long())
    Episode(Batch(x, Y[:, :3]), Batch((NODES, EDGES), Y)).check()
    with pytest.raises(ValueError, match=r"\[4, 3, 5\].*\[4, 6, 2\]"):
        Episode(Batch((torch.zeros(4, 3, 5), x[1]), Y[:, :3]), Batch((NODES, EDGES), Y)).check()


def test_one_label_for_a_graph() -> None:
    Episode(None, Batch((NODES, EDGES), torch.zeros(4).long())).check()
    Episode(None, Batch((NODES[0], EDGES[0]), torch.tensor(1))).check(named="case")


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ((NODES, EDGES), Y[:, :5], r"shapes \[4, 6, 2\], \[4, 2, 9\], \[4, 5\].*at least one tensor of x"),
        ((NODES, EDGES[:3]), Y, r"shapes \[4, 6, 2\], \[3, 2, 9\], .*same task axis"),
        ((NODES, torch.tensor(1.0)), Y, r"shapes \[4, 6, 2\], \[\], .*same task axis"),
        ((NODES, EDGES), (Y, Y[:, :5]), r"\[4, 6\], \[4, 5\]; the targets must begin"),
    ],
)
def test_examples_that_differ_in_number(x: Any, y: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Episode(None, Batch(x, y)).check()


class Encoding(UserDict):
    """As a tokenizer returns it: a mapping that is no dict."""


class Proxy(Mapping):
    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


class Subclass(dict):
    """Of a class that `tree_map` does not know."""


@pytest.mark.parametrize("kind", [Encoding, Proxy, Subclass, MappingProxyType])
def test_any_mapping_becomes_a_dict(kind: Any) -> None:
    inner = kind({"ids": torch.ones(4, 6), "type": "text"})
    for x, part in (
        (inner, lambda x: x),
        ((inner,), lambda x: x[0]),
        ({"text": inner}, lambda x: x["text"]),
        (Inputs((), kind({"text": inner})), lambda x: x.kwargs["text"]),
    ):
        episode = Episode(Batch(x, Y), Batch(x, Y)).to(torch.float64)
        episode.check()
        found = part(episode[1].query.x)
        assert type(found) is dict and found["type"] == "text"
        assert found["ids"].dtype == torch.float64 and found["ids"].shape == (6,)


def test_what_is_not_converted_stays_the_same_object() -> None:
    encoding = Encoding({"ids": torch.ones(4, 6)})
    first, second = (Episode(None, Batch(encoding, Y)).query.x for _ in range(2))
    assert first is second  # tasks that share an input share one pass through the model
    for x in (
        {"ids": Y, "deep": [Y, (Y,)]},
        (Y, {"mask": Y}),
        OrderedDict(ids=Y),
        Inputs((Y,), {"mask": Y}),
    ):
        batch = Batch(x, Y)
        assert Episode(None, batch).query is batch
    assert Episode((Y, Y), (Y, Y)).support.x is Y


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Episode(None, (np.zeros((4, 6)), Y)),
            r"query.x holds a numpy.ndarray .*\[4, 6\].*from_numpy",
        ),
        (lambda: Episode((Y, np.zeros(4)), (Y, Y)), "support.y holds a numpy.ndarray"),
        (lambda: Episode(None, ({"a": [np.zeros(4)]}, Y)), "query.x holds a numpy.ndarray"),
        (lambda: Episode(None, (Y, [0, 1, 2])), r"query.y is a list of numbers; .*torch.tensor\(y\)"),
        (lambda: Episode(None, Y), r"query is a Tensor; pass Batch\(x, y\)"),
        (lambda: Episode(None, [Y, Y]), "query is a list"),
        (lambda: as_episode(((X, Y), None)), "query is None; .*empty batch"),
        (lambda: Episode(Y, (Y, Y)), "support is a Tensor"),
        (lambda: Episode(None, (Y, Y, Y)), "query is a tuple"),
        (lambda: Episode(None, Inputs((Y,), {})), "query is a Inputs"),
        (lambda: Episode(None, (Inputs(Y, {}), Y)), "Inputs of a Tensor and a dict; pass a tuple"),
        (lambda: Episode(None, (Y, Y), [1, 2, 3, 4]).check(), r"task is a list; .*torch.as_tensor"),
    ],
)
def test_parts_of_the_wrong_type(make: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize("ways", [0, -1, 2.0, "5"])
def test_ways_that_are_no_number_of_classes(ways: Any) -> None:
    with pytest.raises(ValueError, match=f"ways={ways!r} is no number of classes"):
        Episode(None, (Y, Y), ways=ways)


@pytest.mark.parametrize(
    ("support", "query", "words"),
    [
        ({"a": Y}, {"a": Y, "b": Y}, r"keywords \['a'\], query.x has the keywords \['a', 'b'\]"),
        ((Y,), (Y, Y), "1 positional arguments, query.x has 2 positional"),
        (Y, (Y,), "one argument, query.x has 1 positional"),
        (Inputs((Y,), {}), Inputs((), {"a": Y}), r"keywords \[\], query.x has 0 positional"),
    ],
)
def test_support_and_query_with_other_arguments(support: Any, query: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Episode(Batch(support, Y), Batch(query, Y)).check()


def test_what_is_taken_for_an_episode() -> None:
    episode = Episode(batch(4, 3), batch(4, 5))
    assert as_episode(episode) is episode
    for value in ((batch(4, 3), batch(4, 5)), ((X, X), (X, X))):
        found = as_episode(value)
        assert found.support.x is value[0][0] and found.query.y is value[1][1]
    assert as_episode((None, (X, X))).support is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (batch(4, 3), r"got a Batch; pass Episode\(None, batch\)"),
        (Batch((X, X), (X, X)), "got a Batch"),
        ((X, X), r"got a tuple; pass Episode\(support=\(x, y\), query=\(x, y\)\)"),
        ([batch(4, 3), batch(4, 3)], "got a list; .*one episode in each call"),
        ([Episode(None, batch(4, 3))], "got a list; .*one episode in each call"),
        (DataLoader(TensorDataset(X, X)), "got a DataLoader; .*one episode in each call"),
        (X, "got a Tensor"),
        ({"train": (X, X)}, "got a dict"),
        (None, "got a NoneType"),
    ],
)
def test_what_is_no_episode(value: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"expected an Episode, {words}"):
        as_episode(value)
    with pytest.raises(TypeError, match=f"expected an Episode for task 'case', {words}"):
        as_episode(value, "case")
