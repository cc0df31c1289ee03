"""Means with intervals, against scipy."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from metamtl import Estimate, delta_m
from metamtl.estimate import student_t


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 9, 29, 99, 599, 9999])
@pytest.mark.parametrize("level", [0.975, 0.95, 0.6])
def test_quantiles_of_student_t(df: int, level: float) -> None:
    assert student_t(df, level) == pytest.approx(stats.t.ppf(level, df), rel=1e-8)


@pytest.mark.parametrize("n", [2, 5, 100])
def test_interval_is_that_of_scipy(n: int) -> None:
    values = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Estimate.of(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.numpy().mean(), scale=stats.sem(values.numpy()))
    assert found.mean - found.ci95 == pytest.approx(low, rel=1e-8)
    assert found.mean + found.ci95 == pytest.approx(high, rel=1e-8)
    assert found.n == n and torch.equal(found.values, values)


def test_the_worst_tenth_lies_in_the_direction_of_worse() -> None:
    values = torch.arange(100.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert Estimate.of(values).worst_decile == pytest.approx(94.5)
    assert Estimate.of(values, higher_is_better=True).worst_decile == pytest.approx(4.5)
    assert Estimate.of(values[:15]).worst_decile == float(values[:15].max())


def test_one_value_has_no_interval() -> None:
    found = Estimate.of(torch.tensor([2.0]))
    assert found.mean == found.worst_decile == 2.0 and math.isnan(found.ci95) and found.n == 1


def test_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        Estimate.of(torch.zeros(0))


def test_values_are_cut_from_the_graph_and_summed_in_double() -> None:
    values = torch.full((1000,), 0.1, requires_grad=True)
    found = Estimate.of(values)
    assert not found.values.requires_grad and found.values.dtype == torch.float64
    assert found.mean == pytest.approx(float(torch.tensor(0.1)), rel=1e-14)


def test_how_it_reads() -> None:
    found = Estimate.of(torch.tensor([1.0, 2.0, 3.0]))
    assert str(found) == "2.0000 ± 2.4841 (n=3)" and "values" not in repr(found)
    expected = {"mean": 2.0, "ci95": found.ci95, "n": 3, "worst_decile": 3.0, "num_missing": 0}
    assert found.as_dict() == expected and "num_missing=0" in repr(found)


def test_examples_without_a_label_are_counted() -> None:
    found = Estimate.of(torch.tensor([1.0, 2.0, 3.0]), num_missing=4)
    assert found.num_missing == found.as_dict()["num_missing"] == 4
    assert str(found) == "2.0000 ± 2.4841 (n=3, 4 examples without a label)" and "num_missing=4" in repr(
        found
    )


def test_delta_m() -> None:
    up = {"tone": True, "length": False}
    baseline = {"tone": 0.8, "length": 4.0}
    # By hand: (0.1 / 0.8 + 1 / 4) / 2.
    assert delta_m({"tone": 0.9, "length": 3.0}, baseline, up) == pytest.approx(18.75)
    assert delta_m(baseline, baseline, up) == 0
    # A negative measure has a direction too.
    assert delta_m({"gain": -1.0}, {"gain": -2.0}, {"gain": True}) == pytest.approx(50)


@pytest.mark.parametrize(
    ("values", "baseline", "message"),
    [
        ({"tone": 1.0}, {"tone": 0.0}, "the baseline of tone is zero"),
        ({"tone": 1.0}, {"tone": math.nan}, "the baseline of tone is zero or not finite"),
        ({"tone": 1.0}, {"length": 1.0}, r"values has the tasks \['tone'\], and baseline has \['length'\]"),
        ({}, {}, r"values has the tasks \[\], and baseline has \[\]"),
        ({"tone": math.nan}, {"tone": 1.0}, "the measure of tone is not finite"),
    ],
)
def test_delta_m_refuses(values: dict[str, float], baseline: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delta_m(values, baseline, dict.fromkeys(baseline, True))


def test_delta_m_needs_a_direction_for_each_task() -> None:
    values = {"tone": 1.0, "length": 2.0}
    with pytest.raises(ValueError, match=r"no direction for \['length'\].*has one for \['tone'\]"):
        delta_m(values, values, {"tone": True})
    with pytest.raises(TypeError, match="the direction of length is 'max'; pass True"):
        delta_m(values, values, {"tone": True, "length": "max"})  # type: ignore[dict-item]


def test_delta_m_of_estimates_asks_for_their_means() -> None:
    estimates = {"tone": Estimate.of(torch.ones(3))}
    with pytest.raises(
        TypeError, match=r"values holds {'tone': 'Estimate'}; pass numbers, such as the mean"
    ):
        delta_m(estimates, {"tone": 1.0}, {"tone": True})  # type: ignore[arg-type]


def test_a_paired_difference_is_over_the_same_tasks() -> None:
    hard = torch.tensor([0.1, 0.9, 0.5, 0.3])
    first, second = Estimate.of(hard + 0.05), Estimate.of(hard)
    difference = first.difference(second)
    assert difference.mean == pytest.approx(0.05) and difference.ci95 < 1e-6 < first.ci95
    assert second.difference(first).mean == pytest.approx(-0.05)
    with pytest.raises(ValueError, match="the same tasks, but the estimates have 4 and 3 values"):
        first.difference(Estimate.of(torch.ones(3)))
