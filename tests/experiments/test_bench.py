"""The bench: that its contenders compute the same, and what its file and its table hold."""

from __future__ import annotations

import importlib
import os
import warnings
from unittest import mock

import pytest
import torch
from torch import nn

from experiments import bench
from experiments.tables import bench as bench_table
from experiments.utils import contenders
from metamtl import Batch, Episode, engines

FAST = ("Loop", "Vmap", "Auto")


def _few(work: contenders.Work, num_tasks: int) -> contenders.Work:
    """The same with fewer tasks."""
    support, query = (
        Batch(x[:num_tasks], y[:num_tasks]) for x, y in (work.episode.support, work.episode.query)
    )
    return work._replace(episode=Episode(support, query))


@pytest.fixture
def peers() -> tuple[str, ...]:
    """Those of the bench; without them a test skips, or fails where `CI` is set."""
    for name in contenders.PEERS:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Failed to load image Python extension")
                importlib.import_module(name)
        except ImportError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"{name} cannot be imported ({error}); `make peers` installs it")
    return contenders.PEERS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sinusoid_5", "omniglot", "conv4", "anil", "transformer"])
def test_gradients_are_those_of_the_plain_unroll(name: str) -> None:
    work = _few(contenders.WORK[name](), 2).double()
    ours = {f"metamtl {engine}": contenders.ours(work, engine()) for engine in (engines.Loop, engines.Vmap)}
    failed, found = bench.differences(ours, work)
    assert not failed and max(found.values()) < 1e-12


def test_peers_compute_it_too_or_say_why_not(peers: tuple[str, ...]) -> None:
    for name in ("sinusoid_5", "anil", "transformer"):
        work = _few(contenders.WORK[name](), 2).double()
        theirs = {peer: contenders.OTHERS[peer](work) for peer in peers}
        failed, found = bench.differences(theirs, work)
        if name == "transformer":
            assert set(failed) == set(peers) and all(
                "is not implemented" in text for text in failed.values()
            )
        else:
            assert not failed and max(found.values()) < 1e-12


def test_a_failure_of_our_own_is_not_taken_for_a_result() -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        bench.differences({"metamtl Loop": broken}, _few(contenders.sinusoid(1), 2))


def test_operations_are_counted() -> None:
    """A layer of 3 x 2 weights on 10 examples: 120 forward, 120 back."""
    layer, x = nn.Linear(3, 2), torch.randn(10, 3)
    with bench.Operations() as counted:
        layer(x).sum().backward()
    assert counted.flops == 240
    found = bench.floor(_few(contenders.sinusoid(2), 2))
    assert found["flops"] > 2 * bench.floor(_few(contenders.sinusoid(1), 1))["flops"] > 0 < found["seconds"]


def test_the_table_holds_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TRIALS", 1)
    for peer in contenders.PEERS:
        monkeypatch.delitem(contenders.OTHERS, peer)
    rows = bench.timed(lambda: _few(contenders.transformer(), 2), FAST, rounds=2)
    assert set(rows) == {"plain torch.func", *(f"metamtl {name}" for name in FAST)}
    for row in rows.values():
        assert row["spread"][0] <= row["seconds"] <= row["spread"][1]
    ours = {name: row for name, row in rows.items() if name.startswith("metamtl")}
    assert all(row["relative_difference_float64"] < 1e-10 for row in ours.values())
    failing = {peer: {"error": "RuntimeError: no"} for peer in contenders.PEERS}
    compiled = {
        name: {"seconds": 0.5} for name in ("metamtl Compiled", "metamtl Compiled, one task at a time")
    }
    result = {
        "hardware": {"device": "a processor", "threads": 2},
        "versions": {"torch": "2"},
        "floor": {"transformer": {"flops": 1, "seconds": 0.001}},
        "work": {"transformer": {**rows, **failing, **compiled}},
        "recompute": {"sinusoid_50": {"Vmap": {"exact": 1.0, "checkpointed": 1.25, "ratio": 1.25}}},
        "first_call": {"sinusoid_5": 4.0},
        "auto": {"sinusoid_5": {"steps": 500, "seconds": {"Loop": 2.0, "Auto": 2.1}, "ratio": 1.05}},
        "evaluate": {
            "tasks": 600,
            "steps": 10,
            "contenders": {
                "learn2learn": {"seconds": 10.0},
                "metamtl Compiled": {"seconds": 2.0, "first_call": 9.0},
            },
        },
        "memory": {
            "peak": {"higher": {"1": 10.0, "5": 50.0}},
            "parameters": 0.5,
            "malloc": "the C library's defaults",
        },
    }
    text = bench_table.section("bench", result)
    for part in (
        "| transformer | fails | fails |",
        "500.0",
        "x `Loop` | 1.0 |",
        "higher: `RuntimeError: no`",
        "1.25 (sinusoid_50, `Vmap`)",
        "sinusoid_5 4.0 s",
        "`Auto` 1.05 times the best",
        "`Compiled` 2.0 s (5.0x)",
        "| higher | 10 | 50 | 10.00 |",
        "a processor, 2 threads; torch 2.",
    ):
        assert part in text


def test_recomputing_is_held_against_the_plain_order() -> None:
    works = {"small": lambda order: _few(contenders.sinusoid(2, order), 2)}
    found = bench.recomputation(works, rounds=1)["small"]
    assert set(found) == {"Loop", "Vmap"}
    assert all(row["ratio"] == row["checkpointed"] / row["exact"] for row in found.values())


@pytest.mark.slow
def test_what_must_not_know_of_earlier_runs_has_a_process_of_its_own() -> None:
    assert bench.fresh("course('sinusoid_1', 'Vmap', 2)") > 0
    found = bench.fresh("peak('metamtl recompute', 1)")
    assert found > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch.compile's
def test_evaluation_is_timed(peers: tuple[str, ...]) -> None:
    with mock.patch("metamtl.engines.kinds.BACKEND", "eager"):  # without a compiler's time
        found = bench.evaluation(rounds=1, num_tasks=10, steps=0)
    assert set(found["contenders"]) == {"learn2learn", "metamtl Vmap", "metamtl Compiled"}
