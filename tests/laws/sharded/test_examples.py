"""Several processes compute what one process computes, for named tasks whose examples are divided."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.tables.traffic import Step, sent

from .process import NAMES, start

pytestmark = pytest.mark.slow  # starts processes

DEATH = """
import os, sys, torch
from torch import distributed as dist
from torch.nn import functional as F
from metamtl import Batch, Episode, engines, meta_backward, nets, recipes

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/death", rank=rank, world_size=2)
net = nets.named_heads(nets.mlp(1, 4, 1), {"a": 1})
episodes = {"a": Episode(None, Batch(torch.ones(3, 1), torch.ones(3, 1)))}
for step in range(3):
    if rank == 1 and step == 2:
        os._exit(9)
    meta_backward(net, recipes.joint(), episodes, {"a": F.mse_loss}, engine=engines.Sharded())
"""


@pytest.fixture(scope="module", params=[1, 2, 3])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each process of a group of this size has found."""
    folder = tmp_path_factory.mktemp("group")
    return start("examples_process.py", request.param, folder, ",".join(NAMES))


def test_every_aggregator_is_that_of_one_process(results: list[dict[str, Any]]) -> None:
    """At parameters and features; processes without labels of a task, without any, without examples."""
    for result in results:
        assert {name: value for name, value in result["aggregators"].items() if not value < 1e-10} == {}


def test_own_inputs_and_tasks_that_adapt(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert max(result["others"].values()) < 1e-10


def test_evaluation_is_that_of_one_process(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert [name for name, same in result["evaluation"].items() if not same] == []


def test_errors_are_raised_in_every_process(results: list[dict[str, Any]]) -> None:
    last = len(results) - 1
    if last == 0:
        assert results[0]["errors"] == {}
        return
    anywhere = {
        "nan": f"FloatingPointError: the loss of tasks ['kind'] of 3 is not finite in process {last} (",
        "missing": f"ValueError: the processes have different tasks: process {last} has no mark.",
        "order": "ValueError: the tasks differ: process 0 has ['kind', 'size', 'mark'], process",
        "sum": "ValueError: the loss CrossEntropyLoss() is a sum",
        "unlabeled": "ValueError: no process has a label of the tasks ['size']",
        "support": "ValueError: the support sets differ: process 0 has {'size': [",
        "wrapped": "TypeError: the model is wrapped in DistributedDataParallel",
        "changed": "[]",  # no .grad
    }
    in_the_last = {
        "raised": "KeyError: 'only here'",
        "bad call": "ValueError: task 'size': query: x and y do not fit together",
        "no metrics": "ValueError: no metrics for tasks ['kind', 'mark', 'size']",
    }
    for rank, result in enumerate(results):
        failed = "" if rank == last else f"RuntimeError: process {last} failed: "
        expected = anywhere | {name: failed + words for name, words in in_the_last.items()}
        wrong = {n: text for n, text in result["errors"].items() if not text.startswith(expected.pop(n))}
        assert wrong == {} and not expected


def test_the_bytes_that_are_sent(results: list[dict[str, Any]]) -> None:
    for result in results:
        traffic = result["traffic"]
        step = Step(3, traffic["shared"], traffic["heads"], traffic["features"], len(results))
        for layout, by_aggregator in traffic["sent"].items():
            for reads, count in by_aggregator.items():
                few = 4000 if len(results) > 1 else 0  # flags, and a few numbers for each tensor
                assert 0 <= count - sent(step, layout, reads) <= few * len(results)


def test_a_dead_process_is_named_as_the_cause(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DEATH]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    words = [process.communicate(timeout=240)[1] for process in processes]
    assert processes[1].returncode == 9 and processes[0].returncode != 0
    assert "of 2 processes failed in process 0, because another process has ended" in words[0]
