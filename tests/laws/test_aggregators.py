"""What every aggregator obeys. A new one joins by one row in `OPTIONS`, where it needs options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd import aggregation

from metamtl import aggregators

T = 4  # rows of the random matrices
J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)

OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "CAGrad": lambda rows: {"c": 0.5},
    "Constant": lambda rows: {"weights": torch.arange(1, rows + 1, dtype=torch.float64)},
    "FairGrad": lambda rows: {"alpha": 1.0},
    "Krum": lambda rows: {"n_byzantine": 0},
    "NashMTL": lambda rows: {"n_tasks": rows},
    "TrimmedMean": lambda rows: {"trim_number": 1},
}
NAMES = ["Mean", *aggregators.names()]
STOCHASTIC = {"GradDrop", "GradVac", "PCGrad", "Random"}
NON_CONFLICTING = {"DualProj", "MGDA", "UPGrad"}
# The order of tasks means something: it is that of the weights, or the first is the primary task.
ORDERED = {"Constant", "PCD"}
# cvxpy's word on NashMTL's own problem
pytestmark = pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP")


def make(name: str, rows: int = T, **more: Any) -> aggregators.Aggregator:
    if name == "Mean":
        return aggregators.Mean()
    return getattr(aggregators, name)(**OPTIONS.get(name, lambda rows: {})(rows), **more)


def installed(name: str) -> bool:
    try:
        make(name)
    except ImportError:
        return False
    return True


INSTALLED = [name for name in NAMES if installed(name)]


def theirs(name: str, rows: int = T) -> Callable[[Tensor], Tensor]:
    """TorchJD's own object."""
    weightings = {"MoDo": aggregation.MoDoWeighting, "SDMGrad": aggregation.SDMGradWeighting}
    if name in weightings:
        return aggregation.GramianWeightedAggregator(weightings[name]())
    return getattr(aggregation, name)(**OPTIONS.get(name, lambda rows: {})(rows))


def matrix(rows: int = T, columns: int = 7, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=rng, dtype=torch.float64) + 0.3


def direction(aggregator: aggregators.Aggregator, rows: Tensor) -> Tensor:
    return aggregator(torch.ones(len(rows), dtype=rows.dtype), rows)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def test_a_missing_package_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda package: None)
    missing = set(NAMES) - {name for name in NAMES if installed(name)}
    assert {"CAGrad", "DualProj", "NashMTL", "UPGrad"} <= missing
    for name in missing:
        with pytest.raises(ImportError, match=rf"aggregators\.{name} .*pip install 'torchjd\[full\]'"):
            make(name)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_direction_is_that_of_torchjd(name: str, seed: int) -> None:
    rows = matrix(seed=seed)
    ours = make(name, **({} if name == "Mean" else {"seed": 5}))
    with torch.random.fork_rng():
        their = theirs(name)
        for call in range(3):  # with what a method remembers from call to call
            torch.manual_seed(5 + call)
            assert torch.equal(direction(ours, rows), their(rows))


@pytest.mark.parametrize("name", INSTALLED)
def test_draws_come_from_the_seed_and_never_from_the_global_state(name: str) -> None:
    rows, other = matrix(), matrix(seed=1)
    before = torch.get_rng_state()
    first = make(name)
    found = [direction(first, each) for each in (rows, other)]
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second = make(name)
        assert all(torch.equal(a, direction(second, each)) for a, each in zip(found, (rows, other)))


@pytest.mark.parametrize("name", sorted(STOCHASTIC - {"GradVac"}))
def test_seed_and_call_change_the_draw(name: str) -> None:
    rows = matrix(8, 40)
    first, second = make(name, 8), make(name, 8, seed=10)
    draws = [direction(each, rows) for each in (first, first, second)]
    assert not any(torch.equal(draws[a], draws[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", sorted(set(INSTALLED) - {"Mean"}))
def test_the_state_dict_carries_on_with_the_draws(name: str) -> None:
    rows = matrix()
    first, second = make(name), make(name)
    direction(first, rows)
    state = first.state_dict()
    assert int(state["draws"]) == 1
    second.load_state_dict(state)
    assert int(second.draws) == 1
    if name != "NashMTL":
        for _ in range(2):
            assert torch.equal(direction(second, rows), direction(first, rows))
    third = make(name)
    third.load_state_dict(make(name).state_dict())  # of one that was never called
    assert torch.equal(direction(third, rows), direction(make(name), rows))


@pytest.mark.parametrize("name", INSTALLED)
def test_rows_and_losses_are_left_as_they_are(name: str) -> None:
    rows = matrix().requires_grad_()
    before = rows.detach().clone()
    found = direction(make(name), rows)
    assert torch.equal(rows, before) and rows.grad is None
    assert found.shape == (7,) and found.dtype == rows.dtype
    assert name == "Mean" or not found.requires_grad


@pytest.mark.parametrize("name", sorted(set(INSTALLED) - {"Constant"}))
def test_single_precision_stays_single(name: str) -> None:
    assert direction(make(name), matrix().float()).dtype == torch.float32


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1.0, 1e5, 1e10, 1e15])
def test_finite_at_every_scale(name: str, scale: float) -> None:
    assert bool(direction(make(name), scale * matrix()).isfinite().all())


DEGENERATE = {
    "zero": torch.zeros(T, 7, dtype=torch.float64),
    "one zero row": matrix() * torch.tensor([[1.0], [0.0], [1.0], [1.0]], dtype=torch.float64),
    "rank 1": torch.ones(T, 1, dtype=torch.float64) * matrix(1),
    "rank 2": matrix(T, 2, seed=1) @ matrix(2),
    "opposed": torch.cat([matrix(2), -matrix(2)]),
}


# NashMTL has no solution where two rows are opposed or one is zero: cvxpy divides by zero.
@pytest.mark.parametrize("name", sorted(set(INSTALLED) - {"NashMTL"}))
@pytest.mark.parametrize("kind", DEGENERATE)
def test_finite_on_degenerate_matrices(name: str, kind: str) -> None:
    found = direction(make(name), DEGENERATE[kind])
    assert bool(found.isfinite().all())
    if kind == "zero":
        assert not found.any()


@pytest.mark.parametrize("name", sorted(set(INSTALLED) - STOCHASTIC - ORDERED))
def test_the_order_of_tasks_does_not_matter(name: str) -> None:
    rows = matrix()
    turned = rows[torch.tensor([2, 0, 3, 1])]
    assert distance(direction(make(name), turned), direction(make(name), rows)) <= 1e-6


@pytest.mark.parametrize("name", sorted(NON_CONFLICTING & set(INSTALLED)))
@pytest.mark.parametrize("seed", range(5))
def test_no_task_gets_worse(name: str, seed: int) -> None:
    """`J A(J) >= 0`, on matrices with opposed rows; Mean and Sum break it."""
    rows = matrix(3, seed=seed)
    rows[1] -= 3 * rows[0]
    options = {"max_iters": 10_000, "epsilon": 1e-9} if name == "MGDA" else {}
    agreement = rows @ direction(make(name, 3, **options), rows)
    assert float(agreement.min()) >= -1e-3 * float(rows.square().sum(1).max())
    assert float((rows @ rows.mean(0)).min()) < -0.1


@pytest.mark.parametrize("name", ["Mean", "Sum"])
@pytest.mark.parametrize("factor", [0.5, 8.0])
def test_mean_and_sum_are_linear_in_a_row(name: str, factor: float) -> None:
    rows = matrix()
    scaled = rows.clone()
    scaled[1] *= factor
    change = (factor - 1) * rows[1] * (1 if name == "Sum" else 1 / T)
    expected = direction(make(name), rows) + change
    torch.testing.assert_close(direction(make(name), scaled), expected, rtol=1e-12, atol=1e-12)


def test_mgda_vanishes_at_a_pareto_stationary_point() -> None:
    rows = matrix(2)
    rows[1] = -2 * rows[0]
    assert float(direction(make("MGDA", 2), rows).norm()) <= 1e-12 * float(rows.norm())


def _exact_projector() -> dict[str, Any]:
    from torchjd.linalg import QuadprogProjector

    return {"projector": QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12)}  # theirs regularises by 1e-4


# Directions on J, from closed forms.
PINNED: dict[str, tuple[Callable[[], aggregators.Aggregator], list[float]]] = {
    "Mean": (aggregators.Mean, [1, 1, 1]),
    "Sum": (lambda: make("Sum"), [2, 2, 2]),
    "Constant": (lambda: make("Constant", 2), [8, 3, 3]),
    "MGDA": (lambda: make("MGDA"), [0, 1, 1]),
    "PCGrad": (lambda: make("PCGrad"), [100 / 171, 650 / 171, 650 / 171]),
    "UPGrad": (lambda: make("UPGrad", **_exact_projector()), [50 / 171, 325 / 171, 325 / 171]),
    "DualProj": (lambda: make("DualProj", **_exact_projector()), [5 / 9, 10 / 9, 10 / 9]),
    "IMTLG": (lambda: make("IMTLG"), [0.07669683, 1, 1]),
    "CAGrad": (lambda: make("CAGrad"), [0.18350342, 1.20412415, 1.20412415]),
    "AlignedMTL": (lambda: make("AlignedMTL"), [0.21327875, 0.96733298, 0.96733298]),
    "FairGrad": (lambda: make("FairGrad"), [0.07658429, 0.99853264, 0.99853264]),  # Nash-MTL, for alpha = 1
    "NashMTL": (lambda: make("NashMTL", 2, max_norm=0.0), [0.07658429, 0.99853264, 0.99853264]),
    "ConFIG": (lambda: make("ConFIG"), [0.15880898, 2.07060676, 2.07060676]),
}


@pytest.mark.parametrize("name", sorted(PINNED.keys() & set(INSTALLED)))
def test_pinned_values(name: str) -> None:
    build, expected = PINNED[name]
    expect = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(direction(build(), J), expect, rtol=0, atol=1e-6)


def test_imtlg_projects_equally_on_every_gradient() -> None:
    found = direction(make("IMTLG"), J)
    projections = J @ found / J.norm(dim=1)
    torch.testing.assert_close(projections[0], projections[1], rtol=1e-10, atol=0)
