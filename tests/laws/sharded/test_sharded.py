"""Several processes compute what one process computes: every aggregator, uneven shares, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, aggregators, engines, meta_backward, nets, recipes

pytestmark = pytest.mark.slow  # starts processes
PAIRS = Batch(torch.ones(2, 3, 1), torch.ones(2, 3, 1))
EPISODE = Episode(PAIRS, PAIRS)
NAMES = sorted(set(aggregators.names()) - {"AutoLambda"})


@pytest.fixture(scope="module", params=[1, 2, 3, 7])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each process of a group of this size has found."""
    size, folder = request.param, tmp_path_factory.mktemp("group")
    names = NAMES if size < 7 else ["Mean", "MGDA", "GradDrop"]
    command = [sys.executable, str(Path(__file__).with_name("run_process.py"))]
    shares = [[*command, str(rank), str(size), str(folder), ",".join(names)] for rank in range(size)]
    processes = [subprocess.Popen(share, stderr=subprocess.PIPE, text=True) for share in shares]
    words = [process.communicate(timeout=200)[1] for process in processes]
    assert not any(process.returncode for process in processes), words[0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def test_every_aggregator_is_that_of_one_process(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert {name: value for name, value in result["aggregators"].items() if not value < 1e-10} == {}


def test_learned_rates_and_evaluation(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert max(*result["adapters"].values(), *result["evaluation"].values()) < 1e-10


def test_errors_are_raised_in_every_process(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        assert result["errors"]["nan"].startswith("FloatingPointError: the loss of tasks [4] of 5 is not")
        own = rank == len(results) - 1
        expected = (
            "KeyError: 'only here'" if own else f"RuntimeError: process {len(results) - 1} failed: KeyError"
        )
        assert result["errors"]["raised"].startswith(expected)


def test_what_is_exchanged(results: list[dict[str, Any]]) -> None:
    """Of n = 21 parameters and T = 5 tasks on W processes, by the table of `engines.Sharded`."""
    size, n, num_tasks = len(results), 21, 5
    share, width = -(-num_tasks // size), -(-n // size)
    few = 6  # flags, and the number of gradient evaluations
    for result in results:
        all_reduce, all_gather, all_to_all = result["traffic"]["Mean"]
        assert n <= all_reduce <= n + few and all_gather <= 2 * share and all_to_all == 0
        all_reduce, all_gather, all_to_all = result["traffic"]["MGDA"]
        assert n + num_tasks**2 <= all_reduce <= n + num_tasks**2 + few
        assert all_gather <= 2 * share and all_to_all == share * width * size
        all_reduce, all_gather, all_to_all = result["traffic"]["GradDrop"]
        assert all_reduce <= few and share * n <= all_gather <= share * (n + 2) and all_to_all == 0


def test_without_a_group_the_remedy_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"torchrun and call torch\.distributed\.init_process_group\(\)"):
        meta_backward(nn.Linear(1, 1), recipes.maml(), EPISODE, F.mse_loss, engine=engines.Sharded())
    for inner in ("Vmap", engines.Sharded()):
        with pytest.raises(TypeError, match=r"pass engines\.Vmap\(\)"):
            engines.Sharded(inner)  # type: ignore[arg-type]
    named = {"a": Episode(None, Batch(torch.ones(3, 1), torch.ones(3, 1)))}
    net = nets.named_heads(nets.mlp(1, 4, 1), {"a": 1})
    with pytest.raises(ValueError, match="named tasks"):
        meta_backward(net, recipes.joint(), named, {"a": F.mse_loss}, engine=engines.Sharded())
