"""What the processes of the tests of `engines.Sharded` have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
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
    """Run a script, which becomes the processes of a group, and return what each of them has written."""
    command = [sys.executable, str(Path(__file__).with_name(script)), str(size), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def main(compute: Callable[[list[str]], dict[str, Any]]) -> None:
    """Fork into the processes of a group, so that torch is imported once, and wait for them."""
    size, folder, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    processes = []
    for rank in range(int(size)):
        process = os.fork()
        if process == 0:
            join(compute, rank, int(size), Path(folder), arguments)
        processes.append(process)
    failed = [process for process in processes if os.waitpid(process, 0)[1]]
    raise SystemExit(len(failed))


def join(
    compute: Callable[[list[str]], dict[str, Any]], rank: int, size: int, folder: Path, arguments: list[str]
) -> None:
    """Join the group, write the results of `compute`, and leave."""
    code = 1
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=size)
        (folder / f"{rank}.json").write_text(json.dumps(compute(arguments)))
        dist.barrier()  # a process that leaves closes connections that others may still use
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # a fork does not clean up for the process that it was forked from
