"""What every aggregator obeys. A new one joins by itself; one that needs options, by a row in conftest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd import aggregation, scalarization

from metamtl import aggregators
from metamtl.aggregators import scalarized, torchjd

T = 4  # rows of the random matrices
NAMES = aggregators.names()
STOCHASTIC = {"GradDrop", "GradVac", "PCGrad", "Random"}
NO_ZERO_ROW = {"NashMTL"}  # refuses one
LOSSES = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
Make = Callable[..., aggregators.Aggregator]


def matrix(rows: int = T, columns: int = 7, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=rng, dtype=torch.float64) + 0.3


def direction(aggregator: aggregators.Aggregator, rows: Tensor) -> Tensor:
    return aggregator(LOSSES[: len(rows)].to(rows.dtype), rows)


def test_there_are_at_least_22() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 22
    assert all(name in dir(aggregators) or hasattr(aggregators, name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_scale_is_what_it_says(name: str, make: Make) -> None:
    """Equal rows and losses of one become `g` (mean) or `T g` (sum)."""
    one = matrix(1)
    aggregator = make(name, T)
    found = aggregator(torch.ones(T, dtype=torch.float64), one.expand(T, -1).contiguous())
    expected = {"mean": one[0], "sum": T * one[0]}.get(aggregator.scale)
    if expected is None:
        assert aggregator.scale == "own"
    else:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


TABLES = (aggregators.TorchJD, aggregators.Scalarized)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_states_the_scale(name: str, make: Make) -> None:
    kind = type(make(name, T))
    words = kind.__doc__ or ""
    (table,) = [base for base in TABLES if issubclass(kind, base)] or [None]
    if table is not None and kind is not aggregators.Constant:
        lines = (table.__doc__ or "").splitlines()
        lines = [line for line in lines if name in line and line.count("|") >= 3]
        assert any(make(name, T).scale in line for line in lines)
    else:
        assert f"Scale: {make(name, T).scale}" in words


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_has_a_row_for_it(name: str, make: Make) -> None:
    page = (Path(__file__).parents[2] / "docs" / "aggregators.md").read_text(encoding="utf-8")
    table = page.partition("## Formulas")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    (row,) = [row for row in rows if row[0] == f"`{name}`"]
    aggregator = make(name, T)
    theirs = type(getattr(aggregator, "inner", None)).__module__.startswith("torchjd")
    assert row[2] in ("weights losses", "combines gradients", "robust")
    assert row[3:] == [aggregator.scale, "TorchJD" if theirs else "metamtl"]
    assert len(rows) == len(NAMES) + 2  # with the head and the line under it


def theirs(name: str, make: Make) -> Callable[[Tensor], Tensor]:
    """TorchJD's own object, from the options of ours."""
    weightings = {"MoDo": aggregation.MoDoWeighting, "SDMGrad": aggregation.SDMGradWeighting}
    if name in weightings:
        return aggregation.GramianWeightedAggregator(weightings[name]())
    ours = make(name, T)
    assert isinstance(ours, aggregators.TorchJD)
    return getattr(aggregation, name)(**ours.options)


@pytest.mark.parametrize("name", torchjd.names())
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_direction_is_that_of_torchjd(name: str, seed: int, make: Make) -> None:
    more = {"weights": torch.arange(1.0, T + 1, dtype=torch.float64)} if name == "Constant" else {}
    rows = matrix(seed=seed)
    ours = make(name, T, **more, **({"seed": 5} if name in STOCHASTIC else {}))
    with torch.random.fork_rng():
        their = theirs(name, make) if not more else aggregation.Constant(**more)
        for call in range(3):  # with what a method remembers from call to call
            torch.manual_seed(5 + call)
            assert torch.equal(direction(ours, rows), their(rows))


SCALARIZERS = [*scalarized.names(), "DWA", "FAMO"]


@pytest.mark.parametrize("name", SCALARIZERS)
def test_direction_is_the_gradient_of_torchjds_scalarizer(name: str, make: Make) -> None:
    """Losses that are linear in the parameters: the scalarized loss has the direction as its gradient."""
    rows, ours = matrix(), make(name, T)
    options: dict[str, Any] = {
        "COSMOS": {"lambda_": 0.1, "weights": torch.ones(T).double()},
        "FAMO": {"shape": T},
        "IMTLL": {"shape": T},
        "PBI": {"theta": 5.0, "weights": torch.ones(T).double()},
        "STCH": {"mu": 0.1},
        "UW": {"shape": T},
    }.get(name, {})
    their = getattr(scalarization, name)(**options).double()
    for call in range(5):
        losses = LOSSES * (1 + 0.1 * call * LOSSES)
        theta = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
        if name == "FAMO" and call:
            their.update(losses)
        their(losses + rows @ theta).backward()
        if name == "DWA" and call % 2:
            their.step()
        torch.testing.assert_close(ours(losses, rows), theta.grad, rtol=1e-12, atol=1e-14)
    for mine, expected in zip(ours.parameters(), their.parameters()):
        assert (mine.grad is None) == (expected.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad.double(), expected.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_draws_come_from_the_seed_and_never_from_the_global_state(name: str, make: Make) -> None:
    rows, other = matrix(), matrix(seed=1)
    before = torch.get_rng_state()
    first = make(name, T)
    found = [direction(first, each) for each in (rows, other)]
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second = make(name, T)
        assert all(torch.equal(a, direction(second, each)) for a, each in zip(found, (rows, other)))


@pytest.mark.parametrize("name", sorted(STOCHASTIC - {"GradVac"}))
def test_seed_and_call_change_the_draw(name: str, make: Make) -> None:
    rows = matrix(8, 40)
    losses = torch.ones(8, dtype=torch.float64)
    first, second = make(name, 8), make(name, 8, seed=10)
    draws = [each(losses, rows) for each in (first, first, second)]
    assert not any(torch.equal(draws[a], draws[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_from_the_state_dict(name: str, wrapped: bool, make: Make) -> None:
    """Bit for bit, from any number of calls, into one that was called before, or never."""

    def build() -> aggregators.Aggregator:
        return aggregators.Rescaled(make(name, T)) if wrapped else make(name, T)

    def states(aggregator: aggregators.Aggregator) -> dict[str, Any]:
        return {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in aggregator.state_dict().items()
        }

    for calls in (0, 1, 3):
        first, used, fresh = build(), build(), build()
        direction(used, matrix(seed=9))
        for call in range(calls):
            direction(first, matrix(seed=call))
        saved = states(first)
        used.load_state_dict(saved)
        fresh.load_state_dict(saved)
        for call in range(2):
            rows = matrix(seed=20 + call)
            expected = direction(first, rows)
            assert torch.equal(direction(fresh, rows), expected)
            assert torch.equal(direction(used, rows), expected)


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_losses_are_left_as_they_are(name: str, make: Make) -> None:
    rows, losses = matrix().requires_grad_(), LOSSES.clone().requires_grad_()
    before = rows.detach().clone()
    found = make(name, T)(losses, rows)
    assert torch.equal(rows, before) and torch.equal(losses, LOSSES)
    assert rows.grad is None and losses.grad is None
    assert found.shape == (7,) and found.dtype == rows.dtype
    assert name == "Mean" or not found.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_stays_single(name: str, make: Make) -> None:
    aggregator = make(name, T)
    for _ in range(2):
        assert direction(aggregator, matrix().float()).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1.0, 1e5, 1e10, 1e15])
def test_finite_at_every_scale(name: str, scale: float, make: Make) -> None:
    assert bool(direction(make(name, T), scale * matrix()).isfinite().all())


DEGENERATE = {
    "zero": torch.zeros(T, 7, dtype=torch.float64),
    "one zero row": matrix() * torch.tensor([[1.0], [0.0], [1.0], [1.0]], dtype=torch.float64),
    "rank 1": torch.ones(T, 1, dtype=torch.float64) * matrix(1),
    "rank 2": matrix(T, 2, seed=1) @ matrix(2),
    "opposed": torch.cat([matrix(2), -matrix(2)]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_finite_on_degenerate_matrices(name: str, kind: str, make: Make) -> None:
    if name in NO_ZERO_ROW and "zero" in kind:
        with pytest.raises(ValueError, match=r"gradient is zero, as those of tasks \[.*1.*\] are"):
            direction(make(name, T), DEGENERATE[kind])
        return
    aggregator = make(name, T)
    for _ in range(2):
        found = direction(aggregator, DEGENERATE[kind])
        assert bool(found.isfinite().all())
        if kind == "zero":
            assert not found.any()


@pytest.mark.parametrize("name", NAMES)
def test_rescaled_changes_the_length_alone(name: str, make: Make) -> None:
    rows = matrix()
    plain = direction(make(name, T), rows)
    mean = direction(aggregators.Rescaled(make(name, T)), rows)
    unit = direction(aggregators.Rescaled(make(name, T), norm=1.0), rows)
    torch.testing.assert_close(mean.norm(), rows.mean(0).norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(unit, plain / plain.norm(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mean / mean.norm(), unit, rtol=1e-12, atol=1e-14)


def test_mean_and_sum_make_tasks_worse() -> None:
    """What the aggregators that claim to agree are there for."""
    rows = matrix(3)
    rows[1] -= 3 * rows[0]
    assert float((rows @ rows.mean(0)).min()) < -0.1


def test_a_missing_package_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda package: None)
    for name in ("CAGrad", "DualProj", "FairGrad", "NashMTL", "UPGrad"):
        with pytest.raises(
            ImportError, match=rf"aggregators\.{name} .*pip install 'metamtl\[aggregators\]'"
        ):
            make(name, T)
