from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metamtl.tasks.sinusoid import Sinusoid


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shapes_and_no_ids_of_infinitely_many_tasks() -> None:
    family = Sinusoid(shots=5, queries=7)
    episode = family.sample(3, rng())
    episode.check()
    assert episode.support is not None and episode.task is None and family.ids == []
    assert episode.support.x.shape == episode.support.y.shape == (3, 5, 1)
    assert episode.query.x.shape == episode.query.y.shape == (3, 7, 1)
    assert episode.query.y.dtype == torch.get_default_dtype()


def test_every_task_is_one_sine_within_the_ranges() -> None:
    episode = Sinusoid(shots=30, queries=30, dtype=torch.float64).sample(200, rng())
    assert episode.support is not None
    x, y = episode.support
    # y = p sin x + q cos x, with p = A cos b and q = -A sin b: two numbers explain the support exactly,
    # and the query with it.
    design = torch.cat([x.sin(), x.cos()], -1)
    p, q = torch.linalg.lstsq(design, y).solution.squeeze(-1).unbind(-1)
    amplitude, phase = torch.hypot(p, q), torch.atan2(-q, p)
    queries = episode.query.x
    expected = amplitude.view(-1, 1, 1) * torch.sin(queries - phase.view(-1, 1, 1))
    torch.testing.assert_close(episode.query.y, expected)
    assert 0.1 <= amplitude.min() < 0.5 and 4.6 < amplitude.max() <= 5.0
    assert 0.0 <= phase.min() < 0.2 and math.pi - 0.2 < phase.max() <= math.pi
    assert -5.0 <= x.min() < -4.9 and 4.9 < x.max() <= 5.0
    assert amplitude.mean() == pytest.approx(2.55, abs=0.35)


def test_same_generator_same_episode() -> None:
    family = Sinusoid()
    torch.manual_seed(1)
    first = family.sample(4, rng(3))
    torch.manual_seed(2)
    second, other = family.sample(4, rng(3)), family.sample(4, rng(4))
    assert torch.equal(first.query.y, second.query.y) and not torch.equal(first.query.y, other.query.y)


def test_dtypes_agree_up_to_rounding() -> None:
    single = Sinusoid(noise=0.1, dtype=torch.float32).sample(4, rng())
    double = Sinusoid(noise=0.1, dtype=torch.float64).sample(4, rng())
    assert single.query.y.dtype == torch.float32 and double.query.y.dtype == torch.float64
    torch.testing.assert_close(single.query.y.double(), double.query.y, rtol=1e-5, atol=1e-5)


def test_a_fixed_list_of_tasks_is_made_from_the_seed() -> None:
    family = Sinusoid(shots=2, queries=2, tasks=6, x_range=(1.0, 1.0), seed=5)
    assert family.ids == list(range(6))
    episode = family.sample(100, rng())
    assert episode.task is not None and episode.task.shape == (100,)
    assert set(episode.task.tolist()) == set(family.ids)
    # At one x, the y of a task is its own number: the same whenever the task is drawn.
    values = {task: set(episode.query.y[episode.task == task].flatten().tolist()) for task in family.ids}
    assert all(len(value) == 1 for value in values.values())
    again = Sinusoid(shots=2, queries=2, tasks=6, x_range=(1.0, 1.0), seed=5).sample(100, rng())
    assert torch.equal(again.query.y, episode.query.y)
    other = Sinusoid(shots=2, queries=2, tasks=6, x_range=(1.0, 1.0), seed=6).sample(100, rng())
    assert not torch.equal(other.query.y, episode.query.y)


def test_points_of_a_fixed_task_are_fresh() -> None:
    episode = Sinusoid(tasks=1).sample(2, rng())
    assert not torch.equal(episode.query.x[0], episode.query.x[1])


def test_validation_and_test_are_new_tasks_of_the_same_kind() -> None:
    family = Sinusoid(3, 4, tasks=2, amplitude=(1.0, 2.0), noise=0.5, dtype=torch.float64)
    assert family.split("train") is family
    for name in ("validation", "test"):
        new = family.split(name)  # type: ignore[arg-type]
        assert new.ids == [] and new.amplitude == (1.0, 2.0) and new.noise == 0.5
        assert new.sample(5, rng()).query.y.dtype == torch.float64
    with pytest.raises(ValueError, match="split 'val' is not one of"):
        family.split("val")  # type: ignore[arg-type]


def test_noise_has_its_standard_deviation() -> None:
    noisy = Sinusoid(500, 500, amplitude=(0.0, 0.0), noise=0.5).sample(10, rng())
    assert noisy.support is not None
    for batch in (noisy.support, noisy.query):
        assert batch.y.std().item() == pytest.approx(0.5, rel=0.05)


def test_amplitudes_on_a_logarithmic_scale() -> None:
    family = Sinusoid(
        40, 40, amplitude=(0.1, 50.0), amplitude_scale="log", x_range=(0.0, 0.0), phase=(-math.pi / 2,) * 2
    )
    for one in (family, family.split("test")):
        heights = one.sample(4_000, rng()).query.y[:, 0, 0]  # y = A sin(pi / 2) = A
        assert 0.1 <= heights.min() < 0.11 and 46 < heights.max() <= 50
        # As many below the geometric mean of the range as above, and as many in its lowest quarter.
        assert (heights < math.sqrt(0.1 * 50)).float().mean().item() == pytest.approx(0.5, abs=0.03)
        assert (heights < 0.1 * 500**0.25).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_relative_errors_count_tasks_of_all_sizes_alike() -> None:
    assert set(Sinusoid().metrics) == {"mse"}
    relative = Sinusoid(amplitude_scale="log").split("test").metrics["relative"]
    y = torch.tensor([[3.0], [-1.0], [2.0]])
    assert not relative.higher_is_better
    torch.testing.assert_close(relative(torch.zeros(3, 1), y).mean(), torch.tensor(1.0))
    output = torch.tensor([[2.0], [1.0], [2.0]])  # squared errors 1, 4, 0; mean square of y: 14 / 3
    for size in (1.0, 1e3):
        torch.testing.assert_close(
            relative(size * output, size * y), torch.tensor(5 / 14), rtol=1e-6, atol=1e-7
        )


def test_loss_and_metric_agree() -> None:
    family = Sinusoid()
    batch = family.sample(1, rng()).query
    output = torch.zeros_like(batch.y[0])
    metric = family.metrics["mse"]
    assert not metric.higher_is_better
    torch.testing.assert_close(family.loss(output, batch.y[0]), metric(output, batch.y[0]).mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0, "queries": 0}, "shots=0, queries=0: a task needs at least one example"),
        ({"queries": -1}, "neither number may be negative"),
        ({"tasks": 0}, "tasks=0 must be at least 1"),
        ({"amplitude": (5.0, 0.1)}, "amplitude"),
        ({"amplitude_scale": "decibel"}, "amplitude_scale='decibel' is not 'linear' or 'log'"),
        ({"amplitude_scale": "log", "amplitude": (0.0, 1.0)}, "has no logarithm.*must be above 0"),
        ({"phase": (0.0, math.inf)}, "phase"),
        ({"x_range": (math.nan, 1.0)}, "x_range"),
        ({"x_range": (1.0,)}, "x_range"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"noise": math.nan}, "noise=nan"),
        ({"dtype": torch.int64}, "floating-point"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sinusoid(**options)


def test_no_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="num_tasks=0"):
        Sinusoid().sample(0, rng())
