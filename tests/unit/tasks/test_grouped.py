from __future__ import annotations

import pytest
import torch

from metamtl.tasks import FewShot, GroupedTasks, Sinusoid


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def family(classes: range, shots: int = 1) -> FewShot:
    """Every example is the number of its class."""
    labels = torch.arange(12).repeat_interleave(4)
    return FewShot(labels.float()[:, None], labels, ways=2, shots=shots, queries=2, classes=classes)


def groups() -> GroupedTasks:
    return GroupedTasks({"a": family(range(0, 3)), "b": family(range(3, 8)), "c": family(range(8, 12))})


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 7, 9])
def test_groups_come_evenly_and_in_order(tasks: int) -> None:
    episode = groups().sample(tasks, rng())
    episode.check()
    assert episode.task is not None and episode.support is not None and episode.ways == 2
    assert episode.support.x.shape == (tasks, 2, 1) and episode.query.y.shape == (tasks, 4)
    group = torch.bucketize(episode.task, torch.tensor([3, 8]), right=True)
    assert bool((group == group[:, :1]).all())  # a task lies within one group
    assert group[:, 0].tolist() == sorted(group[:, 0].tolist())
    counts = group[:, 0].bincount(minlength=3)
    assert int(counts.max() - counts.min()) <= 1
    examples = episode.task.gather(1, episode.support.y)
    assert torch.equal(episode.support.x[..., 0], examples.float())


def test_the_rest_goes_by_lot() -> None:
    family, one = groups(), rng()
    seen = {tuple(family.counts(4, one)) for _ in range(50)}
    assert seen == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}


def test_same_generator_same_episode_and_what_it_knows() -> None:
    family = groups()
    torch.manual_seed(1)
    first, second = family.sample(5, rng(3)), family.sample(5, rng(3))
    assert torch.equal(first.query.x, second.query.x) and first.task is not None
    assert not torch.equal(first.task, family.sample(5, rng(4)).task)  # type: ignore[arg-type]
    assert family.ids == list(range(12)) and set(family.metrics) == {"accuracy"}
    one = family.groups["a"]
    assert family.loss is one.loss


def test_tasks_without_ids() -> None:
    waves = GroupedTasks({"low": Sinusoid(amplitude=(0.1, 0.1)), "high": Sinusoid(amplitude=(9.0, 9.0))})
    episode = waves.sample(6, rng())
    assert episode.task is None and waves.ids == []
    assert (episode.query.y.abs().amax((1, 2)) > 0.1001).tolist() == 3 * [False] + 3 * [True]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one group of tasks; found none"):
        GroupedTasks({})
    with pytest.raises(ValueError, match="num_tasks=0 must be at least 1"):
        groups().sample(0, rng())


def test_groups_of_other_types_or_shapes() -> None:
    def source(values: torch.Tensor) -> FewShot:
        return FewShot(values, torch.arange(20) // 5, ways=2, shots=1, queries=2)

    tokens, vectors = source(torch.ones(20, 3).long()), source(torch.ones(20, 3))
    rng = torch.Generator().manual_seed(0)
    # torch.cat would turn the token ids into floats.
    with pytest.raises(
        ValueError, match=r"group 'a' hold \[2, 3\] torch.int64.*'b' \[2, 3\] torch.float32"
    ):
        GroupedTasks({"a": tokens, "b": vectors}).sample(2, rng)
    with pytest.raises(ValueError, match="need the same shapes and types"):
        GroupedTasks({"a": vectors, "b": source(torch.ones(20, 4))}).sample(2, rng)
    assert GroupedTasks({"a": tokens, "b": tokens}).sample(3, rng).query.x.dtype == torch.int64
