"""What each aggregator claims, on random matrices. A new one joins by one row in `CLAIMS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd.linalg import QuadprogProjector

from metamtl import aggregators

MATRICES, FEWER = 240, 60  # fewer for those that take milliseconds for one
SLOW = {"CAGrad", "FairGrad", "GradVac", "MGDA", "NashMTL", "SDMGrad"}
Make = Callable[..., aggregators.Aggregator]
# order: the order of the tasks does not matter.
# turn: rotated parameters give the rotated direction, A(JQ) = A(J)Q; only inner products count.
# scale: A(cJ) = c A(J).
# span: the direction is a combination of the rows; hull: with weights on the simplex.
# agree: no task gets worse, J A(J) >= 0; free: where the rows are linearly independent.
# linear: in the length of a row, A(diag(a + b) J) = A(diag(a) J) + A(diag(b) J) for positive a, b.
CLAIMS: dict[str, str] = {
    "AdaTask": "order",
    "AlignedMTL": "order turn scale span",
    "AutoLambda": "order turn scale span linear",
    "CAGrad": "order turn scale span agree",  # with c = 1
    "COSMOS": "order turn scale span linear",
    "ConFIG": "order turn scale span free linear",
    "Constant": "turn scale span linear",
    "DBMTL": "order turn scale span",
    "DWA": "order turn scale span linear",
    "DualProj": "order turn scale span agree",
    "ExcessMTL": "order span hull",
    "FAMO": "order turn scale span hull linear",
    "FairGrad": "order turn span free",
    "GeometricMean": "order turn scale span linear",
    "GradDrop": "order scale",
    "GradNorm": "order turn scale span",
    "GradVac": "turn scale span",
    "IMTLG": "order turn scale span",
    "IMTLL": "order turn scale span linear",
    "Krum": "turn scale span hull",  # of two that are nearest to each other, the first
    "LossAscent": "order turn scale span hull linear",
    "MGDA": "order turn scale span hull agree",
    "Mean": "order turn scale span hull linear",
    "MoDo": "order turn span hull",
    "NashMTL": "order turn span free",
    "PBI": "order turn scale span linear",
    "PCD": "turn scale span",
    "PCGrad": "turn scale span",
    "Random": "turn scale span hull linear",
    "RawLossAscent": "order turn scale span linear",
    "SDMGrad": "order turn span",
    "STCH": "order turn scale span linear",
    "Sum": "order turn scale span linear",
    "TrimmedMean": "order scale",
    "UPGrad": "order turn scale span agree linear",
    "UW": "order turn scale span linear",
}


# Their solvers' own tolerances, taken away where they have an option for it.
EXACT: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 1.0},
    "DualProj": {"projector": QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12)},
    "NashMTL": {"max_norm": 0.0},
    "UPGrad": {"projector": QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12)},
}
# Relative errors: of rounding, of a constant of 1e-8 that the method adds, of solvers that stop early.
ERROR = {"CAGrad": 1e-6, "GradVac": 1e-6, "MGDA": 1e-2, "PCD": 1e-6}
# These divide by the eigenvalues of the Gramian, so that rounding is multiplied by its condition number.
SPECTRAL = {"AlignedMTL"}


def test_every_aggregator_has_a_row() -> None:
    assert list(CLAIMS) == sorted(CLAIMS) == aggregators.names() and len(CLAIMS) >= 22


def count(name: str) -> int:
    return FEWER if name in SLOW else MATRICES


def draw(rng: torch.Generator, matrices: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Losses, rows, and whether the rows are independent: half of them are, half are of low rank."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    for number in range(matrices):
        tasks = 3 + number % 3
        columns = tasks + number % 5
        rows = normal(tasks, columns) + normal(columns) * (number % 4) / 2  # from opposed to alike
        independent = number % 2 == 0
        if not independent:
            rows = normal(tasks, 2) @ rows[:2]
        if number % 3 == 0:
            rows = rows * torch.logspace(-1, 1, tasks, dtype=torch.float64)[:, None]
        yield torch.rand(tasks, generator=rng, dtype=torch.float64) + 0.5, rows, independent


def rounding(rows: Tensor) -> float:
    """100 times the relative rounding error of the inverse of the Gramian, on the span of the rows."""
    values = torch.linalg.svdvals(rows)
    values = values[values > 1e-10 * values[0]]
    return 100 * torch.finfo(rows.dtype).eps * float(values[0] / values[-1]) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_claims(name: str, make: Make) -> None:
    claims, error = CLAIMS[name].split(), ERROR.get(name, 1e-7)
    rng, more = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    worst: dict[str, float] = {}

    def note(law: str, value: Tensor) -> None:
        """In units of the error that this draw allows."""
        worst[law] = max(worst.get(law, 0.0), float(value) / allowed)

    for losses, rows, independent in draw(rng, count(name)):
        if name in ("FairGrad", "NashMTL") and not independent:
            continue  # they have a solution where no combination of the gradients vanishes
        allowed = max(error, rounding(rows)) if name in SPECTRAL else error
        found = make(name, len(rows), **EXACT.get(name, {}))(losses, rows)
        assert found.shape == rows.shape[1:] and found.dtype == rows.dtype and not found.requires_grad
        size = found.norm().clamp(min=1e-300)
        note("finite", (~found.isfinite()).sum())
        stretch = 10.0 ** int(torch.randint(-10, 16, (), generator=more))
        stretched = make(name, len(rows), **EXACT.get(name, {}))(losses, stretch * rows)
        note("finite", (~stretched.isfinite()).sum())
        if "span" in claims:
            basis = torch.linalg.svd(rows, full_matrices=False)
            kept = basis.Vh[basis.S / basis.S[0] > 1e-10]
            note("span", (found - found @ kept.T @ kept).norm() / rows.norm(dim=1).max())
        if "hull" in claims:  # no further than the furthest row, whichever way one looks
            for way in (found, -found, torch.randn(len(found), generator=rng, dtype=torch.float64)):
                note("hull", (found @ way - (rows @ way).max()) / (rows.norm(dim=1).max() * way.norm()))
        if "agree" in claims or ("free" in claims and independent):
            note("agree", -(rows @ found).min() / rows.norm(dim=1).max() ** 2)
        if independent:
            if "linear" in claims:
                a, b = torch.rand(2, len(rows), 1, generator=more, dtype=torch.float64) + 0.1
                one, other, both = (
                    make(name, len(rows), **EXACT.get(name, {}))(losses, factors * rows)
                    for factors in (a, b, a + b)
                )
                note("linear", (one + other - both).norm() / rows.norm(dim=1).max())
            order = (
                torch.randperm(len(rows), generator=rng) if "order" in claims else torch.arange(len(rows))
            )
            turn = torch.eye(rows.shape[1], dtype=torch.float64)
            if "turn" in claims:
                turn = torch.linalg.qr(torch.randn(turn.shape, generator=rng, dtype=torch.float64))[0]
            factor = 7.0 if "scale" in claims else 1.0
            moved = make(name, len(rows), **EXACT.get(name, {}))(
                losses[order], factor * (rows @ turn)[order]
            )
            note("equal", (moved - factor * found @ turn).norm() / (factor * size))
    assert {law: value for law, value in worst.items() if value > 1} == {}


# Others do not treat these two alike: PCD has a first task, SDMGrad's few long steps overshoot, some draw,
# and some look at single entries.
UNEQUAL = {
    "AdaTask",
    "Constant",
    "ExcessMTL",
    "GradDrop",
    "Krum",
    "PCD",
    "Random",
    "SDMGrad",
    "TrimmedMean",
}


@pytest.mark.parametrize("name", [name for name in CLAIMS if name not in UNEQUAL])
def test_two_gradients_of_one_length_get_one_weight(name: str, make: Make) -> None:
    """Two tasks of equal losses: the direction lies along `g_1 + g_2`."""
    rng, losses = torch.Generator().manual_seed(0), torch.ones(2, dtype=torch.float64)
    worst = 0.0
    for _ in range(count(name)):
        rows = torch.randn(2, 5, generator=rng, dtype=torch.float64)
        rows = rows / rows.norm(dim=1, keepdim=True)
        found, middle = make(name, 2, **EXACT.get(name, {}))(losses, rows), rows.sum(0)
        along = (found @ middle) / (middle @ middle)
        assert float(along) > 0
        worst = max(worst, float((found - along * middle).norm() / found.norm()))
    assert worst < ERROR.get(name, 1e-6)


def test_mgda_vanishes_exactly_where_the_gradients_are_opposed(make: Make) -> None:
    rng, losses = torch.Generator().manual_seed(0), torch.ones(2, dtype=torch.float64)
    for _ in range(FEWER):
        rows = torch.randn(2, 5, generator=rng, dtype=torch.float64)
        opposed = torch.stack([rows[0], -rows[0] * torch.rand((), generator=rng) * 3])
        assert float(make("MGDA", 2)(losses, opposed).norm()) < 1e-12 * float(opposed.norm())
        nearest = torch.linalg.lstsq((rows[0] - rows[1])[:, None], rows[0][:, None]).solution.clamp(0, 1)
        expected = rows[0] - nearest.flatten() * (rows[0] - rows[1])  # of the line between them
        found = make("MGDA", 2)(losses, rows)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        assert float(found.norm()) > 1e-3
