"""What the processes of the tests of `engines.Sharded` have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from metamtl import aggregators

NAMES = sorted(aggregators.names())


def options(name: str, num_tasks: int) -> dict[str, Any]:
    """Options of an aggregator that has no defaults for all of them."""
    needed: dict[str, dict[str, Any]] = {
        "AutoLambda": {"rate": 0.1, "every": 9},
        "CAGrad": {"c": 0.5},
        "COSMOS": {"lambda_": 0.1, "weights": torch.ones(num_tasks)},
        "Constant": {"weights": torch.arange(1.0, num_tasks + 1)},
        "DWA": {"calls_per_epoch": 1},
        "FAMO": {"num_tasks": num_tasks},
        "FairGrad": {"alpha": 1.0},
        "IMTLL": {"shape": num_tasks},
        "Krum": {"n_byzantine": 0},
        "PBI": {"theta": 5.0, "weights": torch.ones(num_tasks)},
        "STCH": {"mu": 0.1},
        "TrimmedMean": {"trim_number": 1},
        "UW": {"shape": num_tasks},
    }
    return needed.get(name, {})


def aggregator(name: str, num_tasks: int) -> Any:
    return getattr(aggregators, name)(**options(name, num_tasks)).double()


def error(results: list[list[Any]], expected: list[list[Any]]) -> float:
    """The largest relative difference of the tensors of all steps; None must be in the same places."""
    pairs = [pair for ours, others in zip(results, expected) for pair in zip(ours, others, strict=True)]
    assert all((a is None) == (b is None) for a, b in pairs)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs if a is not None)


def message(call: Callable[[], Any]) -> str:
    """The error of a call."""
    try:
        call()
    except Exception as exception:
        return f"{type(exception).__name__}: {exception}"
    return "no error"


def bytes_sent(step: Callable[[], Any]) -> int:
    """The bytes that this process writes during a step, those to the sockets of its group."""
    step()
    dist.barrier()
    before = _written()
    step()
    return _written() - before


def _written() -> int:
    return int(Path("/proc/self/io").read_text().partition("wchar: ")[2].split()[0])


def start(script: str, size: int, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a script in every process of a group and return what each of them has written."""
    command = [sys.executable, str(Path(__file__).with_name(script))]
    shares = [[*command, str(rank), str(size), str(folder), *arguments] for rank in range(size)]
    processes = [subprocess.Popen(share, stderr=subprocess.PIPE, text=True) for share in shares]
    words = [process.communicate(timeout=300)[1] for process in processes]
    assert not any(process.returncode for process in processes), words
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def main(compute: Callable[[list[str]], dict[str, Any]]) -> None:
    """Join the group, write the results of `compute`, and leave."""
    rank, size, folder, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=int(rank), world_size=int(size)
    )
    Path(folder, f"{rank}.json").write_text(json.dumps(compute(arguments)))
    dist.barrier()  # a process that leaves closes connections that others may still use
    sys.stderr.flush()
    os._exit(0)  # threads of torch may abort the process while the interpreter shuts down
