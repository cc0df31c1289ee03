"""Several processes compute what one process computes, for a meta-batch: uneven shares, errors, traffic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments.tables.traffic import Step, sent
from metamtl import Batch, Episode, engines, evaluate, meta_backward, nets, recipes

from .process import NAMES, start

PAIRS = Batch(torch.ones(2, 3, 1), torch.ones(2, 3, 1))
EPISODE = Episode(PAIRS, PAIRS)
NUM_TASKS = 5  # of tasks_process


@pytest.fixture(scope="module", params=[1, 2, 3, 7])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each process of a group of this size has found."""
    names = NAMES if request.param in (2, 3) else ["Mean", "MGDA", "GradDrop"]
    return start("tasks_process.py", request.param, tmp_path_factory.mktemp("group"), ",".join(names))


@pytest.mark.slow
def test_every_aggregator_is_that_of_one_process(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert {name: value for name, value in result["aggregators"].items() if not value < 1e-10} == {}


@pytest.mark.slow
def test_learned_rates_and_evaluation(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert max(*result["adapters"].values(), *result["evaluation"].values()) < 1e-10


@pytest.mark.slow
def test_tasks_of_different_shapes(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert max(result["mixed shapes"].values()) < 1e-10


@pytest.mark.slow
def test_the_analysis_has_the_tasks_of_all_processes(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert max(result["analysis"].values()) < 1e-10


@pytest.mark.slow
def test_errors_are_raised_in_every_process(results: list[dict[str, Any]]) -> None:
    last = len(results) - 1
    for rank, result in enumerate(results):
        start, process = "FloatingPointError: the loss of tasks [4] of 5 is not finite in process", last
        assert result["errors"]["nan"].startswith(f"{start} {process} (losses")
        expected = (
            "KeyError: 'only here'" if rank == last else f"RuntimeError: process {last} failed: KeyError"
        )
        assert result["errors"]["raised"].startswith(expected)


@pytest.mark.slow
def test_the_bytes_that_are_sent(results: list[dict[str, Any]]) -> None:
    for result in results:
        step = Step(NUM_TASKS, result["traffic"].pop("parameters"), processes=len(results))
        few = 4000 * len(results) if len(results) > 1 else 0  # flags, and a few numbers for each tensor
        for reads, count in result["traffic"].items():
            assert 0 <= count - sent(step, "tasks", reads) <= few


def test_without_a_group_the_remedy_is_named() -> None:
    start = r"torchrun and call torch\.distributed\.init_process_group\(\)"
    with pytest.raises(RuntimeError, match=start):
        meta_backward(nn.Linear(1, 1), recipes.maml(), EPISODE, F.mse_loss, engine=engines.Sharded())
    named = {"a": Episode(None, Batch(torch.ones(3, 1), torch.ones(3, 1)))}
    net = nets.named_heads(nets.mlp(1, 4, 1), {"a": 1})
    for call in (meta_backward, evaluate):
        with pytest.raises(RuntimeError, match=start):
            call(net, recipes.joint(), named, {"a": F.mse_loss}, engine=engines.Sharded())
    for inner in ("Vmap", engines.Sharded()):
        with pytest.raises(TypeError, match=r"pass engines\.Vmap\(\)"):
            engines.Sharded(inner)  # type: ignore[arg-type]


def test_wrapped_models_and_parts_are_rejected() -> None:
    body = nn.DataParallel(nn.Linear(1, 1))
    for model in (body, nn.Sequential(body)):
        with pytest.raises(
            TypeError, match=r"wrapped in DataParallel.*model\.module, and engine=engines\.Sharded"
        ):
            meta_backward(model, recipes.maml(), EPISODE, F.mse_loss)
