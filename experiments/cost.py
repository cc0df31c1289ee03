"""Time and memory of a step that combines the gradients of eight tasks: `python -m experiments.cost`.

All methods are timed in one process, interleaved. Medians are reported relative to equal weights in plain
torch (one forward and one backward pass). Peak memory is measured in a separate process per method. Writes
`cost.json`.

Examples:
  metamtl cost tasks=4 batch=64
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

from metamtl import Batch, Episode, aggregators, meta_backward, nets, recipes

from .tables.report import environment, write_json
from .utils.command import command

Step = Callable[[], object]
CLASSES = 10


class Work:
    """LeNet with one head per task on random images, because the speed does not depend on the images."""

    def __init__(self, tasks: int, batch: int) -> None:
        torch.manual_seed(0)
        self.model = nets.named_heads(nets.lenet(), {f"task{number}": CLASSES for number in range(tasks)})
        x = torch.rand(batch, 1, 28, 28)
        self.episodes = {
            name: Episode(None, Batch(x, torch.randint(CLASSES, (batch,)))) for name in self.model.heads
        }
        self.loss = dict.fromkeys(self.episodes, F.cross_entropy)

    def losses(self) -> tuple[Tensor, list[Tensor]]:
        """Features and losses in plain torch."""
        batches = [episode.query for episode in self.episodes.values()]
        features = self.model.body(batches[0].x)
        heads = self.model.heads.values()
        return features, [F.cross_entropy(head(features), batch.y) for head, batch in zip(heads, batches)]


def equal(work: Work) -> Step:
    def step() -> None:
        work.model.zero_grad()
        torch.stack(work.losses()[1]).mean().backward()

    return step


def ours(name: str, at: str | None) -> Callable[[Work], Step]:
    """`meta_backward` with gradients of the parameters, or of the features of the body."""

    def make(work: Work) -> Step:
        recipe = recipes.joint(aggregator=getattr(aggregators, name)(), layer=at)

        def step() -> None:
            work.model.zero_grad()
            meta_backward(work.model, recipe, work.episodes, work.loss)

        return step

    return make


def torchjd(name: str, chunk: int | None) -> Callable[[Work], Step]:
    """TorchJD without metamtl: all rows of the Jacobian in one vmap, or `chunk` rows at a time."""

    def make(work: Work) -> Step:
        combine = getattr(aggregation, name)()

        def step() -> None:
            work.model.zero_grad()
            features, losses = work.losses()
            mtl_backward(losses, features=features, parallel_chunk_size=chunk)
            jac_to_grad(list(work.model.body.parameters()), combine)

        return step

    return make


METHODS: dict[str, Callable[[Work], Step]] = {
    "equal weights, plain torch": equal,
    "metamtl Mean, parameters": ours("Mean", None),
    "metamtl PCGrad, parameters": ours("PCGrad", None),
    "metamtl UPGrad, parameters": ours("UPGrad", None),
    "metamtl Mean, features": ours("Mean", "body"),
    "metamtl PCGrad, features": ours("PCGrad", "body"),
    "metamtl UPGrad, features": ours("UPGrad", "body"),
    "TorchJD UPGrad, all rows at once": torchjd("UPGrad", None),
    "TorchJD UPGrad, row by row": torchjd("UPGrad", 1),
}


def check(work: Work) -> float:
    """The largest relative difference between methods that must agree."""

    def gradients(method: str) -> Tensor:
        METHODS[method](work)()
        return torch.cat([param.grad.flatten() for param in work.model.body.parameters()])

    pairs = {
        "metamtl Mean, parameters": "equal weights, plain torch",
        "metamtl Mean, features": "equal weights, plain torch",
        "metamtl UPGrad, parameters": "TorchJD UPGrad, row by row",
        "TorchJD UPGrad, all rows at once": "TorchJD UPGrad, row by row",
    }
    vectors = [(gradients(method), gradients(reference)) for method, reference in pairs.items()]
    return max(float((vector - reference).norm() / reference.norm()) for vector, reference in vectors)


def timed(work: Work, rounds: int) -> dict[str, list[float]]:
    """Seconds of every method in every round, interleaved."""
    steps = {name: make(work) for name, make in METHODS.items()}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak(method: str, tasks: int, batch: int) -> float:
    """Peak memory of two steps in MiB, without the model and its data; call it in a new process."""
    step = METHODS[method](Work(tasks, batch))
    ours("UPGrad", "body")(Work(2, 2))()  # triggers lazy imports
    before = _peak()
    for _ in range(2):
        step()
    return _peak() - before


def _peak() -> float:
    """Peak memory of this process so far, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def memory(tasks: int, batch: int) -> dict[str, float]:
    """`peak` of every method, each in a new process."""
    peaks = {}
    for method in METHODS:
        code = f"from {__package__} import cost; print(cost.peak({method!r}, {tasks}, {batch}))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks[method] = float(run.stdout.splitlines()[-1])
    return peaks


@command("cost")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    work = Work(cfg.tasks, cfg.batch)
    difference = check(work)
    seconds = timed(work, cfg.rounds)
    mib = memory(cfg.tasks, cfg.batch)
    baseline = next(iter(METHODS))
    base = statistics.median(seconds[baseline])
    methods: dict[str, Any] = {
        name: {
            "seconds": statistics.median(values),
            "spread": [min(values), max(values)],
            "times_equal_weights": statistics.median(values) / base,
            "peak_mib": mib[name],
            "times_its_peak": mib[name] / mib[baseline],
        }
        for name, values in seconds.items()
    }
    floor = (1 + 2 * cfg.tasks) / 3  # a backward pass has twice the operations of a forward pass
    result = {
        **environment("cpu"),
        "tasks": cfg.tasks,
        "batch": cfg.batch,
        "rounds": cfg.rounds,
        "relative_difference": difference,
        "one_forward_and_a_backward_for_each_task": floor,
        "methods": methods,
    }
    write_json(folder / "cost.json", result)
    for name, row in methods.items():
        print(
            f"{name:>34} {row['seconds'] * 1e3:8.1f} ms {row['times_equal_weights']:6.2f}x"
            f" {row['peak_mib']:8.1f} MiB {row['times_its_peak']:6.2f}x"
        )
    print(f"largest relative difference {difference:.1e}; {folder / 'cost.json'}")


if __name__ == "__main__":
    raise SystemExit(main())
