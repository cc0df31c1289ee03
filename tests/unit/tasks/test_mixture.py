from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from metamtl import meta_backward, nets, recipes
from metamtl.tasks import LabeledTasks, TaskMixture

SIZES = {"a": 400, "b": 100, "c": 25}


def source(*tasks: str, count: int) -> LabeledTasks:
    return LabeledTasks(
        torch.randn(count, 4),
        {task: torch.randint(2, (count,)) for task in tasks},
        loss=dict.fromkeys(tasks, F.cross_entropy),
        metrics={task: {} for task in tasks},
        outputs=dict.fromkeys(tasks, 2),
    )


def mixture(**options: Any) -> TaskMixture:
    return TaskMixture({task: source(task, count=count) for task, count in SIZES.items()}, **options)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_tasks_with_their_own_batch_sizes() -> None:
    episodes = mixture(sizes={"b": 3}).sample(40, rng())
    assert {task: len(e.query.y) for task, e in episodes.items()} == {"a": 40, "b": 3, "c": 25}


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, (16 / 21, 4 / 21, 1 / 21)), (2.0, (4 / 7, 2 / 7, 1 / 7)), (float("inf"), (1 / 3, 1 / 3, 1 / 3))],
)
def test_proportional_with_temperature(temperature: float, expected: tuple[float, ...]) -> None:
    mixed = mixture(sampling="proportional", temperature=temperature)
    assert mixed.chances().tolist() == pytest.approx(expected)
    draw, steps = rng(), 3000
    counts = Counter(name for step in range(steps) for name in mixed.names(step, draw))
    for name, chance in zip("abc", expected):
        # Four standard deviations of a binomial count.
        assert abs(counts[name] - steps * chance) < 4 * (steps * chance * (1 - chance)) ** 0.5


def test_a_low_temperature_does_not_overflow() -> None:
    chances = mixture(sampling="proportional", temperature=1e-3).chances()
    assert chances.tolist() == [1.0, 0.0, 0.0]


def test_several_tasks_of_a_step_differ() -> None:
    mixed = mixture(sampling="proportional", tasks_per_step=2)
    draw = rng()
    assert all(len(set(mixed.names(step, draw))) == 2 for step in range(50))


def test_round_robin_goes_on_from_step_to_step_and_resumes() -> None:
    mixed = mixture(sampling="round_robin", tasks_per_step=2)
    found = [tuple(mixed.sample(2, rng())) for _ in range(4)]
    assert found == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b")]
    resumed = mixture(sampling="round_robin", tasks_per_step=2)
    resumed.step = 2
    assert tuple(resumed.sample(2, rng())) == ("b", "c")
    assert tuple(resumed.sample(2, rng(), step=1)) == ("a", "c") and resumed.step == 3


def test_schedules() -> None:
    phases = mixture(sampling=[(0, ["a"]), (3, ["a", "c"]), (5, ["b"])])
    found = ["".join(phases.sample(2, rng())) for _ in range(7)]
    assert found == ["a", "a", "a", "ac", "ac", "b", "b"]
    alternating = mixture(sampling=lambda step: ["b"] if step % 2 else ["a", "b"])
    assert ["".join(alternating.sample(2, rng())) for _ in range(3)] == ["ab", "b", "ab"]
    with pytest.raises(ValueError, match="names no task at step 0"):
        mixture(sampling=lambda step: []).sample(2, rng())
    with pytest.raises(ValueError, match=r"schedule at step 0 names \['z'\]; the sources are a, b, c"):
        mixture(sampling=lambda step: ["z"]).sample(2, rng())


def test_what_is_drawn_depends_on_the_generator_alone() -> None:
    mixed = mixture(sampling="proportional", tasks_per_step=2)
    first, again = mixed.sample(8, rng(3)), mixed.sample(8, rng(3))
    assert list(first) == list(again)
    assert all(torch.equal(first[task].query.x, again[task].query.x) for task in first)


def test_a_source_with_several_tasks_brings_them_together_on_one_input() -> None:
    mixed = TaskMixture({"both": source("left", "right", count=20), "other": source("other", count=30)})
    episodes = mixed.sample(5, rng())
    assert list(episodes) == ["left", "right", "other"] == list(mixed.tasks)
    assert episodes["left"].query.x is episodes["right"].query.x
    assert mixed.outputs == {"left": 2, "right": 2, "other": 2}


def test_steps_with_other_tasks_each_train_what_they_have() -> None:
    mixed = mixture(sampling="round_robin")
    model = nets.named_heads(nets.mlp(4, 8, 1), mixed.outputs)
    for step in range(3):
        model.zero_grad()
        outcome = meta_backward(model, recipes.joint(), mixed.sample(4, rng()), mixed.loss)
        assert outcome.tasks == ("abc"[step],)
        touched = {task for task in "abc" if model.heads[task].weight.grad is not None}
        assert touched == {"abc"[step]} and model.body[0].weight.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "often"}, "sampling='often' is not one of"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"tasks_per_step": 4}, "tasks_per_step=4 must be from 1 to 3"),
        ({"sizes": {"d": 3}}, r"sizes names \['d'\]; the sources are a, b, c"),
        ({"sizes": {"a": 0}}, "each must be at least 1"),
        ({"sampling": [(1, ["a"])]}, r"phases begin at steps \[1\]"),
        ({"sampling": [(0, ["a"]), (5, [])]}, "each name at least one task"),
        ({"sampling": [(0, ["z"])]}, r"the schedule names \['z'\]"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(**options)


def test_bad_sources() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        TaskMixture({})
    with pytest.raises(ValueError, match="a task is in two sources"):
        TaskMixture({"x": source("a", count=4), "y": source("a", count=4)})
