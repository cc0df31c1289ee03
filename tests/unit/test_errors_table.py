"""Errors of `HeadTable` and of the ids of tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metamtl import (
    adapters,
    recipes,
)

from .error_cases import CALLS, Refused, T, episode, model, refused


@pytest.mark.parametrize("call", CALLS)
def test_ids_that_the_table_does_not_hold(call: Refused) -> None:
    net = model()
    recipe = recipes.mtl([1, 4, 5, 9], features=5)
    for ids in ([1, 2, 4], [1, 10, 4], [1, -1, 4]):
        task = torch.tensor([[1, 4, 5], ids, [4, 5, 9], [9, 5, 1]])
        with refused(
            net, rf"unknown task ids \[{ids[1]}\]", "holds 4 ids up to 9", "Prototype or Gradient"
        ):
            call(net, recipe, episode(task=task), F.cross_entropy)
    with refused(net, "HeadTable looks a task's head up by its ids", "task=None"):
        call(net, recipe, episode(), F.cross_entropy)


def test_a_table_without_ids() -> None:
    for ids in ([], [3, -1]):
        with pytest.raises(ValueError, match="at least one id, none of them negative"):
            adapters.HeadTable(ids, 4)


@pytest.mark.parametrize("ids", [[3, 7, 3, 9, 9], torch.tensor([3, 7, 3, 9, 9])])
def test_a_table_with_an_id_twice(ids: Any) -> None:
    with pytest.raises(ValueError, match=r"ids \[3, 9\] are listed more than once"):
        adapters.HeadTable(ids, 4)


@pytest.mark.parametrize(
    "ids", [[1, 2.5], [1, 2.0], torch.tensor([1.0]), [True], ["a"], np.array([1.0, 2.0])]
)
def test_a_table_whose_ids_are_no_integers(ids: Any) -> None:
    with pytest.raises(TypeError, match="HeadTable needs integers"):
        adapters.HeadTable(ids, 4)


def test_a_table_with_ids_of_any_integer_type() -> None:
    for ids in ([3, 7], np.array([3, 7], np.uint8), torch.tensor([3, 7]), [torch.tensor(3), np.int64(7)]):
        assert adapters.HeadTable(ids, 4).rows.tolist() == [-1, -1, -1, 0, -1, -1, -1, 1]


@pytest.mark.parametrize("call", CALLS)
def test_ids_of_an_episode_that_are_no_integers(call: Refused) -> None:
    net = model()
    task = torch.tensor([[1.0, 4.0, 5.0]]).expand(T, -1)
    with refused(net, r"Episode.task holds torch.float32.*task.long\(\)"):
        call(net, recipes.mtl([1, 4, 5, 9], features=5), episode(task=task), F.cross_entropy)
