"""Raw loss ascent diverges where tasks conflict; on the simplex it does not."""

from __future__ import annotations

import torch
from torch import Tensor

from metamtl import aggregators


def descend(ascent: aggregators.Aggregator, centres: tuple[float, float], steps: int) -> list[float]:
    """Gradient descent on `(theta - c)^2 / 2` for two centres; the way of theta."""
    theta, way = torch.tensor([0.5], dtype=torch.float64), []
    centre = torch.tensor(centres, dtype=torch.float64)
    for _ in range(steps):
        gaps = theta - centre
        direction = ascent(gaps.square() / 2, gaps[:, None])
        theta = theta - 0.1 * direction
        way.append(float(theta))
        if abs(way[-1]) > 1e6:
            break
    return way


def test_raw_diverges_where_tasks_conflict() -> None:
    """The mean loss cannot fall below 1/2, so after k calls the weights sum to `1 + rate k` or more."""
    ascent = aggregators.RawLossAscent(rate=0.05)
    way = descend(ascent, (-1.0, 1.0), 2_000)
    assert max(abs(theta) for theta in way[:200]) < 1  # at first all is well,
    assert abs(way[-1]) > 1e6  # until learning rate times weights passes 2.
    bound = 1 + 0.05 * len(way)
    weights = ascent.task_weights
    assert isinstance(weights, Tensor) and float(weights.sum()) >= bound
    assert 0.1 * (1 + 0.05 * 200) < 2 < 0.1 * bound


def test_raw_diverges_for_a_smaller_learning_rate_of_the_weights_too_only_later() -> None:
    sooner, later = (
        len(descend(aggregators.RawLossAscent(rate), (-1.0, 1.0), 9_000)) for rate in (0.05, 0.01)
    )
    assert 3 * sooner < later < 9_000


def test_on_the_simplex_it_finds_the_point_of_equal_losses() -> None:
    way = descend(aggregators.LossAscent(rate=0.05), (-1.0, 1.0), 9_000)
    assert len(way) == 9_000 and abs(way[-1]) < 1e-6


def test_raw_converges_where_every_loss_can_reach_zero() -> None:
    ascent = aggregators.RawLossAscent(rate=0.05)
    way = descend(ascent, (1.0, 1.0), 2_000)
    assert abs(way[-1] - 1) < 1e-9 and float(ascent.task_weights.sum()) < 1.1
