"""Throughput of one process and of several, each pinned to a core: `python -m experiments.scaling`.

One process on one core, without a process group, and W processes on W cores compute the same steps in turn.
Reported is the ratio of their median times, which is W if processes cost nothing. Writes `scaling.json`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, aggregators, engines, meta_backward, nets, recipes

from .tables.report import environment, write_json
from .utils.command import command

Step = Callable[[], torch.Tensor]
WAYS, CLASSES = 5, 10
STARTUP = 2  # steps before the clock starts


def few_shot(processes: int) -> Step:
    """MAML with one inner step on 32 tasks of 5 ways and 1 shot; speed does not depend on the images."""
    model, recipe = nets.conv4(WAYS), recipes.maml(1, 0.4)
    y = torch.arange(WAYS).expand(32, WAYS)
    support, query = (Batch(torch.rand(32, WAYS, 1, 28, 28), y) for _ in range(2))
    engine = engines.Vmap() if processes == 1 else engines.Sharded(engines.Vmap())

    def step() -> torch.Tensor:
        model.zero_grad()
        return meta_backward(model, recipe, Episode(support, query), F.cross_entropy, engine=engine).losses

    return step


def named(layer: str | None, net: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable[[int], Step]:
    """UPGrad on 8 tasks with one input of this shape; gradients at the parameters, or at a layer."""

    def make(processes: int) -> Step:
        tasks = [f"task{number}" for number in range(8)]
        model = nets.named_heads(net(), dict.fromkeys(tasks, CLASSES))
        recipe = recipes.joint(aggregator=aggregators.UPGrad(), layer=layer)
        x, loss = torch.randn(shape), dict.fromkeys(tasks, F.cross_entropy)
        episodes = {task: Episode(None, Batch(x, torch.randint(CLASSES, shape[:1]))) for task in tasks}
        engine = None
        if processes > 1:
            engine, episodes = engines.Sharded(), engines.own_examples(episodes)

        def step() -> torch.Tensor:
            model.zero_grad()
            return meta_backward(model, recipe, episodes, loss, engine=engine).losses

        return step

    return make


def _mlp() -> nn.Module:
    return nets.mlp(256, 512, 512, 1)


WORKS: dict[str, Callable[[int], Step]] = {
    "MAML, Conv-4, 32 tasks": few_shot,
    "UPGrad at parameters, MLP, 8 named tasks": named(None, _mlp, (1024, 256)),
    "UPGrad at features, MLP, 8 named tasks": named("body", _mlp, (1024, 256)),
    "UPGrad at features, Conv-4, 8 named tasks": named("body", nets.conv4, (256, 1, 28, 28)),
}


def worker(work: str, rank: int, processes: int, folder: str, core: int, steps: int) -> None:
    """One process of a group. Prints the seconds of a step, and the sum of the losses."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=processes
        )
    torch.manual_seed(0)
    step = WORKS[work](processes)
    for _ in range(STARTUP):
        losses = step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    print((time.perf_counter() - start) / steps, float(losses.sum()), flush=True)
    if processes > 1:
        dist.barrier()  # a process that leaves closes connections that others may still use
        dist.destroy_process_group()


def group(work: str, processes: int, steps: int) -> tuple[float, float]:
    """Seconds for a step, and the sum of the losses, of a group of processes on the first cores."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < processes:
        raise ValueError(f"processes={processes}, but this program may use only {len(cores)} cores.")
    with tempfile.TemporaryDirectory() as folder:
        codes = [
            f"from {__package__} import scaling\n"
            f"scaling.worker({work!r}, {rank}, {processes}, {folder!r}, {cores[rank]}, {steps})"
            for rank in range(processes)
        ]
        running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for code in codes]
        printed = [process.communicate()[0].split() for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{work}: a process of {processes} failed; its error is printed above.")
    return max(float(seconds) for seconds, _ in printed), float(printed[0][1])


def measured(work: str, processes: int, rounds: int, steps: int) -> dict[str, Any]:
    """Both times, in turn."""
    seconds: dict[int, list[float]] = {1: [], processes: []}
    losses: dict[int, float] = {}
    for _ in range(rounds):
        for size, values in seconds.items():
            value, losses[size] = group(work, size, steps)
            values.append(value)
    difference = abs(losses[processes] - losses[1]) / abs(losses[1])
    if difference > 1e-4:
        raise RuntimeError(f"{work}: the losses differ by {difference:.1e}, so the steps are different.")
    alone, together = (statistics.median(values) for values in seconds.values())
    return {
        "seconds": {str(size): values for size, values in seconds.items()},
        "one_process": alone,
        "all_processes": together,
        "speedup": alone / together,
    }


@command("scaling")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    result = {
        **environment("cpu"),
        "processes": cfg.processes,
        "rounds": cfg.rounds,
        "steps": cfg.steps,
        "works": {work: measured(work, cfg.processes, cfg.rounds, cfg.steps) for work in WORKS},
    }
    write_json(folder / "scaling.json", result)
    for work, row in result["works"].items():
        print(
            f"{work:>42} {row['one_process'] * 1e3:8.1f} ms {row['all_processes'] * 1e3:8.1f} ms"
            f" {row['speedup']:6.2f}x"
        )
    print(folder / "scaling.json")


if __name__ == "__main__":
    raise SystemExit(main())
