"""The cost of a step: that its methods compute the same, and that peaks are measured."""

from __future__ import annotations

from experiments import cost


def test_the_ways_agree_and_are_timed() -> None:
    work = cost.Work(tasks=3, batch=8)
    assert cost.check(work) < 1e-5
    seconds = cost.timed(work, rounds=1)
    assert seconds.keys() == cost.METHODS.keys()
    assert all(len(values) == 1 and values[0] > 0 for values in seconds.values())


def test_a_peak_is_measured_above_the_model() -> None:
    assert cost.peak("equal weights, plain torch", tasks=2, batch=64) >= 0
