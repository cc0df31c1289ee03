"""Task sets of learn2learn as episodes."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from metamtl import interop

Error = Callable[[dict[str, Tensor], dict[str, Tensor]], float]
Grads = Callable[..., dict[str, Tensor]]


class Shapes(torch.utils.data.Dataset):
    """60 vectors of 6 classes, 10 .. 15; the first entry is the class, the second the position."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = 10 + index % 6
        return torch.tensor([float(label), float(index)]), label


@pytest.mark.filterwarnings("ignore:TaskDataset is deprecated")
@pytest.mark.parametrize("kind", ["Taskset", "TaskDataset"])
@pytest.mark.parametrize("renumbered", [False, True])
def test_a_task_set_of_learn2learn_as_episodes(l2l: ModuleType, kind: str, renumbered: bool) -> None:
    random.seed(0)
    np.random.seed(0)
    dataset, t = l2l.data.MetaDataset(Shapes()), l2l.data.transforms
    transforms = [t.NWays(dataset, n=3), t.KShots(dataset, k=2 + 4), t.LoadData(dataset)]
    transforms += [t.RemapLabels(dataset), t.ConsecutiveLabels(dataset)] if renumbered else []
    taskset = getattr(l2l.data, kind)(dataset, transforms, num_tasks=100)
    episode = interop.episodes(taskset, 5, ways=3, shots=2)
    episode.check()
    assert episode.support is not None
    assert episode.support.x.shape == (5, 6, 2) and episode.query.x.shape == (5, 12, 2)
    assert episode.support.y.tolist() == [[0, 0, 1, 1, 2, 2]] * 5
    assert episode.query.y.tolist() == [[0] * 4 + [1] * 4 + [2] * 4] * 5
    for task in range(5):
        both = torch.cat([episode.support.x[task], episode.query.x[task]])
        assert len(both[:, 1].unique()) == 18  # no example twice
        for label in range(3):
            seen = [b.x[task][b.y[task] == label][:, 0].unique() for b in (episode.support, episode.query)]
            assert len(seen[0]) == 1 and torch.equal(seen[0], seen[1])
            if not renumbered:
                assert episode.task is not None and episode.task[task, label] == seen[0]
    assert (episode.task is None) == renumbered and episode.ways == 3


def test_a_task_set_that_does_not_fit_is_refused(l2l: ModuleType) -> None:
    dataset, t = l2l.data.MetaDataset(Shapes()), l2l.data.transforms
    transforms = [t.NWays(dataset, n=3), t.KShots(dataset, k=2), t.LoadData(dataset)]
    taskset = l2l.data.Taskset(dataset, transforms, num_tasks=10)
    with pytest.raises(ValueError, match=r"ways=5, shots=1 need 5 classes"):
        interop.episodes(taskset, 1, ways=5, shots=1)
    with pytest.raises(ValueError, match=r"more than 2"):
        interop.episodes(taskset, 1, ways=3, shots=2)
