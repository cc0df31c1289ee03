"""The formulas in the docstrings, computed in a few lines of their own, on random gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metamtl import aggregators

RNG = torch.Generator().manual_seed(0)
FIRST, SECOND = torch.randn(2, 4, 6, generator=RNG, dtype=torch.float64)
MEAN = torch.full((4,), 0.25, dtype=torch.float64)
LOSSES = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def close(result: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def simplex(points: Tensor) -> Tensor:
    """The nearest point of the simplex, by bisection of the shift."""
    low, high = points.min() - 1, points.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (points - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (points - low).clamp(min=0)


def cagrad(g: Tensor) -> Tensor:
    """With the weights by exponentiated gradient descent."""
    mean, c = g.mean(0), 0.5
    w = MEAN.clone().requires_grad_()
    for _ in range(2_000):
        value = (w @ g) @ mean + c * mean.norm() * (w @ g).norm()
        (slope,) = torch.autograd.grad(value, w)
        w = (w.detach().log() - 0.5 * slope).softmax(0).requires_grad_()
    step = w.detach() @ g
    return mean + c * mean.norm() * step / step.norm()


def aligned(g: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(g @ g.T)
    return (values[0].sqrt() * vectors @ values.rsqrt().diag() @ vectors.T @ MEAN) @ g


def config(g: Tensor) -> Tensor:
    u = F.normalize(
        torch.linalg.lstsq(F.normalize(g), torch.ones(4, 1, dtype=g.dtype)).solution[:, 0], dim=0
    )
    return (g @ u).sum() * u


def imtlg(g: Tensor) -> Tensor:
    v = torch.linalg.solve(g @ g.T, g.norm(dim=1))
    return v / v.sum() @ g


def excess(first: Tensor, second: Tensor) -> Tensor:
    start = (first.square() / first.abs()).sum(1)
    later = (second.square() / (first.square() + second.square()).sqrt()).sum(1)
    return (start + later / start).softmax(0) @ second


def modo(first: Tensor, second: Tensor) -> Tensor:
    w = MEAN
    for g in (first, second):
        w = simplex(w - 0.1 * (g @ g.T @ w + 0.1 * w))
    return w @ second


def sdmgrad(g: Tensor) -> Tensor:
    gramian = g @ g.T / g.norm(dim=1).mean().square()
    w, velocity = MEAN, torch.zeros(4, dtype=g.dtype)
    for _ in range(20):
        velocity = 0.5 * velocity + gramian @ (w + 0.3 * MEAN)
        w = simplex(w - 0.01 * velocity)
    return (w + 0.3 * MEAN) / 1.3 @ g


def krum(g: Tensor) -> Tensor:
    distances = (g[:, None] - g).norm(dim=2).sort(dim=1).values
    return g[distances[:, 1:2].sum(1).argsort()[:2]].mean(0)  # T - 1 - 2 neighbors


ROWS: dict[str, tuple[aggregators.Aggregator, Callable[..., Tensor], float]] = {
    "CAGrad": (aggregators.CAGrad(c=0.5), cagrad, 1e-5),
    "AlignedMTL": (aggregators.AlignedMTL(), aligned, 1e-9),
    "ConFIG": (aggregators.ConFIG(), config, 1e-9),
    "IMTLG": (aggregators.IMTLG(), imtlg, 1e-9),
    "SDMGrad": (aggregators.SDMGrad(lr=0.01), sdmgrad, 1e-6),
    "Krum": (aggregators.Krum(1, n_selected=2), krum, 1e-9),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_direction_is_that_of_the_formula(name: str) -> None:
    aggregator, formula, tolerance = ROWS[name]
    close(aggregator(LOSSES, FIRST), formula(FIRST), tolerance)


@pytest.mark.parametrize(
    ("aggregator", "formula", "tolerance"),
    [(aggregators.ExcessMTL(), excess, 1e-5), (aggregators.MoDo(), modo, 1e-9)],
    ids=["ExcessMTL", "MoDo"],
)
def test_the_second_direction_depends_on_both(
    aggregator: aggregators.Aggregator, formula: Callable[..., Tensor], tolerance: float
) -> None:
    aggregator(LOSSES, FIRST)
    close(aggregator(LOSSES, SECOND), formula(FIRST, SECOND), tolerance)


def test_fairgrad_solves_its_equation() -> None:
    direction = aggregators.FairGrad(alpha=2.0)(LOSSES, FIRST)
    w = torch.linalg.lstsq(FIRST.T, direction[:, None]).solution[:, 0]
    close(FIRST @ FIRST.T @ w, w ** (-1 / 2), 1e-4)


def test_gradvac_sets_the_cosine_to_its_running_mean() -> None:
    """Two tasks, second call: the cosine of the first call is the new target, times beta."""
    first = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    second = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    vaccine = aggregators.GradVac(beta=0.5)
    vaccine(LOSSES[:2], first)  # 0.8 is above the mean 0: nothing changes, and the mean becomes 0.4
    m, changed = 0.4, []
    for own, other in (second, second.flip(0)):
        changed.append(own + own.norm() * m / (other.norm() * (1 - m**2) ** 0.5) * other)
        assert float(F.cosine_similarity(changed[-1], other, dim=0)) == pytest.approx(m)
    close(vaccine(LOSSES[:2], second), changed[0] + changed[1], 1e-6)


def test_pcd_is_the_nearest_vector_that_meets_its_constraints() -> None:
    """Two opposed gradients: the constraint is active, so `<e, h_2> = tau |h_2|^2`."""
    g = torch.tensor([[3.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    h = F.normalize(g)
    e = h[0] + (0.1 - h[0] @ h[1]) * h[1]
    close(aggregators.PCD(tau=0.1)(LOSSES[:2], g), 3 * e / e.norm(), 1e-6)
