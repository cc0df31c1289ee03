"""The two-dimensional problem: who gets stuck, and who arrives."""

from __future__ import annotations

from math import log, tanh
from pathlib import Path

import pytest
import torch

from experiments import toy
from metamtl import aggregators


@pytest.mark.slow
def test_the_pareto_set_cannot_be_improved_upon() -> None:
    points = toy.pareto_set()
    assert float(toy.gap(points).max()) < 1e-6
    for theta in points[::200].clone().requires_grad_():
        losses = toy.losses(theta)
        one, other = (torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses)
        weights = torch.stack([7 + theta[0], 7 - theta[0]]).detach() / 14
        assert float((weights[0] * one + weights[1] * other).norm()) < 1e-3  # the grid's step in y


def test_losses_at_points_that_can_be_worked_out() -> None:
    """Zero at y = 0; the bowls at y = -8; the floor of the first valley at x = 2 tanh(y) - 7."""

    def at(x: float, y: float) -> list[float]:
        return (toy.losses(torch.tensor([x, y], dtype=torch.float64)) - toy.SHIFT).tolist()

    assert at(0, 0) == [0, 0]
    assert at(7, -8) == pytest.approx([-20 * tanh(4), -0.4 * tanh(4)], rel=1e-12)
    assert at(2 * tanh(2) - 7, 2)[0] == pytest.approx((log(5e-6) + 6) * tanh(1), rel=1e-12)


@pytest.mark.slow
def test_the_mean_gets_stuck_where_others_arrive() -> None:
    found = toy.descend(["Mean", "AlignedMTL"], steps=1_000, lr=0.02, tolerance=0.1, starts=toy.STARTS[:1])
    (stuck,), (arrived,) = found["Mean"]["starts"], found["AlignedMTL"]["starts"]
    assert [each["reached"] for each in found.values()] == [0, 1]
    assert stuck["gap"] > 5 and stuck["steps"] == 1_000
    assert arrived["gap"] <= 0.1 and arrived["steps"] < 1_000


def test_an_aggregator_walks_as_it_would_alone() -> None:
    together = toy.descend(["PCGrad", "Mean", "UW"], steps=20, lr=0.005, tolerance=0.1)
    for name, found in together.items():
        alone = toy.descend([name], steps=20, lr=0.005, tolerance=0.1)[name]
        assert torch.equal(alone.pop("path"), found.pop("path")) and alone == found


def test_every_aggregator_walks() -> None:
    names = [name for name in aggregators.names() if name not in toy.LEFT_OUT]
    for found in toy.descend(names, steps=3, lr=0.005, tolerance=0.1).values():
        assert found["path"].isfinite().all() and found["path"].shape[1:] == (5, 2)
        assert all(one["steps"] == 3 and one["to"] != one["from"] for one in found["starts"])


def test_who_has_arrived_stays() -> None:
    at = torch.tensor([[0.0, -8.3], [9.0, 9.0]], dtype=torch.float64)
    near, far = toy.descend(["Mean"], steps=100, lr=0.005, tolerance=0.1, starts=at)["Mean"]["starts"]
    assert near["steps"] == 0 and near["to"] == near["from"] and far["to"] != far["from"]


@pytest.mark.slow
def test_the_picture(tmp_path: Path) -> None:
    found = toy.descend(["Mean", "MGDA"], 100, 0.01, 0.1)
    toy.draw({name: each["path"] for name, each in found.items()}, tmp_path / "toy.png")
    assert (tmp_path / "toy.png").stat().st_size > 5_000
