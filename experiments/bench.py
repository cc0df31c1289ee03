"""Benchmark of metamtl, learn2learn, higher and a plain torch.func loop: `python -m experiments.bench`.

Every contender computes the meta-gradient of the same episode in this process. Agreement is checked in
float32 and float64 before the contenders are timed, interleaved. First calls, complete trainings and peak
memory are measured in separate processes, because earlier runs would affect them. Writes `bench.json`.
`device=cuda` measures the workloads; the other entries of `work=` are of the CPU.

Examples:
  metamtl bench 'work=[sinusoid_1]'
  metamtl bench device=cuda 'work=[omniglot,conv4]' 'engines=[Loop,Vmap]'
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from metamtl import engines, evaluate

from . import train
from .tables.report import environment, write_json
from .utils import options
from .utils.command import command
from .utils.contenders import (
    ENGINES,
    OTHERS,
    PEERS,
    WORK,
    Gradient,
    Work,
    images,
    ours,
    sinusoid,
    unrolled,
    with_engine,
)

TRIALS = 12  # steps after which Auto has selected an engine
UNCACHED = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
LARGEST = 2048  # rows of the largest matrix product used to measure the floor


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Median and range of the seconds of each run, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"seconds": statistics.median(values), "spread": [min(values), max(values)]}
        for name, values in seconds.items()
    }


def timed(work: Callable[[], Work], engine_names: Sequence[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of peers and engines and their differences from the reference, or the error of one."""
    contenders = dict(OTHERS) | {f"metamtl {name}": with_engine(ENGINES[name]) for name in engine_names}
    single = work()
    gradients = {name: make(single) for name, make in contenders.items()}
    failed, single_precision = differences(gradients, single)
    double = work().double()
    doubles = {name: make(double) for name, make in contenders.items() if name not in failed}
    _, double_precision = differences(doubles, double)
    if "Auto" in engine_names:
        for _ in range(TRIALS):
            gradients["metamtl Auto"]()
    rows = interleaved({name: gradients[name] for name in doubles}, rounds)
    for name, row in rows.items():
        row["relative_difference"] = single_precision[name]
        row["relative_difference_float64"] = double_precision[name]
    return {name: {"error": failed[name]} if name in failed else rows[name] for name in gradients}


def differences(gradients: Mapping[str, Gradient], work: Work) -> tuple[dict[str, str], dict[str, float]]:
    """Error messages of contenders that fail, and relative differences of the others from `unrolled`."""
    reference = unrolled(work)()
    failed, distances = {}, {}
    for name, gradient in gradients.items():
        try:
            distances[name] = float((gradient() - reference).norm() / reference.norm())
        except Exception as error:
            if name not in PEERS:
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return failed, distances


class Operations(TorchDispatchMode):
    """FLOPs of products and convolutions; torch's own counter uses module hooks, which fail on anil."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.flops += 0 if count is None else count(*args, **(kwargs or {}), out_val=result)
        return result


def floor(work: Work) -> dict[str, float]:
    """FLOPs of one meta-gradient, and the seconds of a matrix product with the same number of FLOPs."""
    with Operations() as counter:
        ours(work, engines.Loop())()
    flops = counter.flops
    size = max(16, min(LARGEST, round((flops / 2) ** (1 / 3))))
    matrix = torch.randn(size, size, device=work.episode.query.y.device)
    product = interleaved({"product": lambda: matrix @ matrix}, 20)["product"]["seconds"]
    return {"flops": flops, "seconds": product * flops / (2 * size**3)}


def recomputation(works: Mapping[str, Callable[[str], Work]], rounds: int) -> dict[str, Any]:
    """Seconds with `Checkpointed()` and with `Unrolled()`, and their ratio."""
    results: dict[str, Any] = {}
    for name, work in works.items():
        for engine in ("Loop", "Vmap"):
            runs = {
                differentiation: ours(work(differentiation), ENGINES[engine]())
                for differentiation in ("exact", "checkpointed")
            }
            for run in runs.values():
                run()
            seconds = {
                differentiation: row["seconds"]
                for differentiation, row in interleaved(runs, rounds).items()
            }
            ratio = seconds["checkpointed"] / seconds["exact"]
            results.setdefault(name, {})[engine] = {**seconds, "ratio": ratio}
    return results


RECOMPUTED: dict[str, Callable[[str], Work]] = {
    "sinusoid_50": lambda differentiation: sinusoid(50, differentiation),
    "conv4_5": lambda differentiation: images(1, 15, "pool", 5, differentiation=differentiation),
}


def fresh(call: str, **variables: str) -> float:
    """Evaluate a call of a function of this module in a new process; return its number."""
    code = f"from {__package__} import bench; print(bench.{call})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **variables}
    )
    return float(run.stdout.splitlines()[-1])


def course(name: str, engine: str, steps: int) -> float:
    """Seconds of the first `steps` meta-gradients."""
    options = {"steps": steps} if engine == "Auto" else {}
    gradient = ours(WORK[name](), getattr(engines, engine)(**options))
    start = time.perf_counter()
    for _ in range(steps):
        gradient()
    return time.perf_counter() - start


def courses(works: list[str], steps: int) -> dict[str, dict[str, Any]]:
    """`course` of every engine including compilation, and the ratio of Auto to the best other engine."""
    results = {}
    for name in works:
        seconds = {
            engine: fresh(f"course({name!r}, {engine!r}, {steps})", **UNCACHED)
            for engine in ("Loop", "Vmap", "Compiled", "Auto")
        }
        best = min(value for engine, value in seconds.items() if engine != "Auto")
        results[name] = {"steps": steps, "seconds": seconds, "ratio": seconds["Auto"] / best}
    return results


MEMORY = ("learn2learn", "higher", "metamtl exact", "metamtl recompute")


def five_shots(steps: int, differentiation: str) -> Work:
    return images(1, 15, "pool", steps, shots=5, lr=0.01, differentiation=differentiation)


def peak(contender: str, steps: int) -> float:
    """Peak memory of one conv4 meta-gradient in MiB, without imports; call it in a new process."""
    work = five_shots(steps, "checkpointed" if contender == "metamtl recompute" else "exact")
    make = OTHERS[contender] if contender in PEERS else with_engine(engines.Loop)
    gradient = make(work)  # imports the peer
    before = _peak()
    gradient()
    return _peak() - before


def _peak() -> float:
    """Peak memory of this process so far, in MiB; getrusage would include the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def memory(steps: list[int]) -> dict[str, Any]:
    """Peaks of every contender for every number of inner steps, parameter memory and malloc settings."""
    parameters = sum(param.nbytes for param in five_shots(1, "exact").model.parameters())
    settings = {key: value for key, value in os.environ.items() if key.startswith(("MALLOC_", "GLIBC_"))}
    return {
        "peak": {
            contender: {str(count): fresh(f"peak({contender!r}, {count})") for count in steps}
            for contender in MEMORY
        },
        "parameters": parameters / 2**20,
        "malloc": settings or "the C library's defaults",
    }


def evaluation(rounds: int, num_tasks: int = 600, steps: int = 10) -> dict[str, Any]:
    """Seconds of evaluation: learn2learn's loop (on a tenth of the tasks, times ten) and metamtl."""
    work = images(num_tasks, 1, "stride", steps)
    import learn2learn as l2l

    learner = l2l.algorithms.MAML(work.model, lr=work.lr)

    def peer_loop() -> None:
        for task in range(num_tasks // 10):
            episode, clone = work.episode[task], learner.clone()
            for _ in range(work.steps):
                clone.adapt(work.loss(clone(episode.support.x), episode.support.y), first_order=True)
            work.loss(clone(episode.query.x), episode.query.y).item()

    def metamtl_run(engine: engines.Engine) -> Callable[[], Any]:
        return lambda: evaluate(work.model, work.recipe, work.episode, work.loss, engine=engine)

    choices = {"Vmap": engines.Vmap(40), "Compiled": engines.Compiled(8)}
    runs = {f"metamtl {name}": metamtl_run(engine) for name, engine in choices.items()}
    start = time.perf_counter()
    runs["metamtl Compiled"]()
    first = time.perf_counter() - start
    results = interleaved({"learn2learn": peer_loop, **runs}, rounds)
    results["learn2learn"] = {
        "seconds": 10 * results["learn2learn"]["seconds"],
        "spread": [10 * value for value in results["learn2learn"]["spread"]],
    }
    results["metamtl Compiled"]["first_call"] = first
    return {"tasks": num_tasks, "steps": steps, "contenders": results}


SPECIAL = ("recompute", "first_call", "auto", "evaluate", "memory")  # beside the workloads


def measured(name: str, cfg: DictConfig, result: dict[str, Any]) -> Any:
    """Run one entry of `cfg.work`, add it to the result, and return it."""
    special: dict[str, Callable[[], Any]] = {
        "recompute": lambda: recomputation(RECOMPUTED, cfg.rounds),
        "first_call": lambda: {
            w: fresh(f"course({w!r}, 'Compiled', 1)", **UNCACHED) for w in cfg.first_call
        },
        "auto": lambda: courses(list(cfg.auto.work), cfg.auto.steps),
        "evaluate": lambda: evaluation(cfg.rounds),
        "memory": lambda: memory(list(cfg.memory_steps)),
    }
    if name in special:
        result[name] = special[name]()
        return result[name]

    def work() -> Work:
        return WORK[name]().to(cfg.device)

    result.setdefault("floor", {})[name] = floor(work())
    result.setdefault("work", {})[name] = timed(work, cfg.engines, cfg.rounds)
    return {"floor": result["floor"][name], **result["work"][name]}


@command("bench")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.device == "auto":
        cfg.device = train.device()
    options.check_names("work", cfg.work, [*WORK, *SPECIAL] if cfg.device == "cpu" else WORK)
    options.check_names("engines", cfg.engines, ENGINES)
    for name in ("first_call", "auto.work"):
        options.check_names(name, OmegaConf.select(cfg, name), WORK)
    result: dict[str, Any] = dict(environment(cfg.device))
    for name in cfg.work:
        print(name, json.dumps(measured(name, cfg, result), indent=2))
        write_json(folder / "bench.json", result)
    print(folder / "bench.json")


if __name__ == "__main__":
    raise SystemExit(main())
