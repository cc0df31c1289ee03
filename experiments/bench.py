"""metamtl beside learn2learn, higher and a plain torch.func loop: `python -m experiments.bench`.

Every contender computes the meta-gradient of the same episode in this process; first that they agree is
checked, then they are timed in turns, and the medians are printed as ratios. Writes `bench.json`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from metamtl import Episode, Recipe, engines, evaluate, meta_backward, nets, recipes, tasks
from metamtl.task import Loss

from .report import environment, write_json
from .train import CONF

Gradient = Callable[[], Tensor]


class Work(NamedTuple):
    """One meta-gradient: a model, a recipe of `steps` inner steps of `lr`, an episode and a loss."""

    model: nn.Module
    recipe: Recipe
    steps: int
    lr: float
    episode: Episode
    loss: Loss
    head: bool = False  # adapt the head alone


def sinusoid(steps: int) -> Work:
    family = tasks.Sinusoid(10, 10)
    episode = family.sample(25, torch.Generator().manual_seed(0))
    return Work(nets.mlp(1, 40, 40, 1), recipes.maml(steps, 0.01), steps, 0.01, episode, F.mse_loss)


def images(tasks_: int, queries: int, downsample: Any, steps: int = 1, *, head: bool = False) -> Work:
    """Random pictures: speed does not depend on what is drawn."""
    pictures = torch.rand(200, 28, 28, generator=torch.Generator().manual_seed(1))
    family = tasks.FewShot(pictures, torch.arange(200) // 20, ways=5, shots=1, queries=queries)
    episode = family.sample(tasks_, torch.Generator().manual_seed(0))
    recipe = recipes.anil(steps, 0.1) if head else recipes.maml(steps, 0.1)
    model = nets.conv4(5, downsample=downsample)
    return Work(model, recipe, steps, 0.1, episode, F.cross_entropy, head)


WORK: dict[str, Callable[[], Work]] = {
    "sinusoid_1": lambda: sinusoid(1),
    "sinusoid_5": lambda: sinusoid(5),
    "sinusoid_50": lambda: sinusoid(50),
    "omniglot": lambda: images(32, 1, "stride"),
    "conv4": lambda: images(8, 15, "pool"),
    "anil": lambda: images(32, 1, "stride", 5, head=True),
}


def ours(work: Work, engine: engines.Engine) -> Gradient:
    """`meta_backward` with one engine."""

    def gradient() -> Tensor:
        work.model.zero_grad()
        meta_backward(work.model, work.recipe, work.episode, work.loss, engine=engine)
        return _grads(work.model)

    return gradient


def learn2learn(work: Work) -> Gradient:
    """The `fast_adapt` of learn2learn's examples."""
    import learn2learn as l2l

    model, count = work.model, work.episode.num_tasks
    learner = l2l.algorithms.MAML(model.head if work.head else model, lr=work.lr)

    def gradient() -> Tensor:
        model.zero_grad()
        for task in range(count):
            one = work.episode[task]
            clone = learner.clone()
            support = model.body(one.support.x) if work.head else one.support.x
            for _ in range(work.steps):
                clone.adapt(work.loss(clone(support), one.support.y))
            query = model.body(one.query.x) if work.head else one.query.x
            (work.loss(clone(query), one.query.y) / count).backward()
        return _grads(model)

    return gradient


def higher(work: Work) -> Gradient:
    """The inner loop of higher's README, with the meta-gradient let through."""
    import higher as peer

    model, count = work.model, work.episode.num_tasks

    def gradient() -> Tensor:
        model.zero_grad()
        inner = torch.optim.SGD((model.head if work.head else model).parameters(), lr=work.lr)
        for task in range(count):
            one = work.episode[task]
            adapted = model.head if work.head else model
            with peer.innerloop_ctx(adapted, inner, copy_initial_weights=False) as (fast, steps):
                support = model.body(one.support.x) if work.head else one.support.x
                for _ in range(work.steps):
                    steps.step(work.loss(fast(support), one.support.y))
                query = model.body(one.query.x) if work.head else one.query.x
                (work.loss(fast(query), one.query.y) / count).backward()
        return _grads(model)

    return gradient


def plain(work: Work) -> Gradient:
    """`vmap` and `grad` written out by hand, the mean over tasks differentiated."""
    model = work.model
    support, query = work.episode.support, work.episode.query
    assert support is not None

    def one_task(params: dict[str, Tensor], xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        names = [name for name in params if not work.head or name.startswith("head.")]
        for _ in range(work.steps):
            gradients = grad(
                lambda fast, params=params: work.loss(functional_call(model, {**params, **fast}, (xs,)), ys)
            )({name: params[name] for name in names})
            params = {**params, **{name: params[name] - work.lr * gradients[name] for name in names}}
        return work.loss(functional_call(model, params, (xq,)), yq)

    def gradient() -> Tensor:
        params = {name: param.detach().requires_grad_() for name, param in model.named_parameters()}
        losses = vmap(one_task, in_dims=(None, 0, 0, 0, 0))(params, *support, *query)
        return torch.cat([g.flatten() for g in torch.autograd.grad(losses.mean(), list(params.values()))])

    return gradient


def _grads(model: nn.Module) -> Tensor:
    return torch.cat([param.grad.flatten() for param in model.parameters() if param.grad is not None])


TRIALS = 12  # steps after which Auto has made its choice
CONTENDERS: dict[str, Callable[[Work], Gradient]] = {
    "learn2learn": learn2learn,
    "higher": higher,
    "plain torch.func": plain,
    "metamtl Loop": lambda work: ours(work, engines.Loop()),
    "metamtl Vmap": lambda work: ours(work, engines.Vmap()),
    "metamtl Compiled": lambda work: ours(work, engines.Compiled()),
    "metamtl Compiled, one task at a time": lambda work: ours(work, engines.Compiled(1)),
    "metamtl Auto": lambda work: ours(work, engines.Auto()),
}


def timed(name: str, rounds: int) -> dict[str, Any]:
    """Seconds and relative differences of all contenders at one work, interleaved."""
    work = WORK[name]()
    gradients = {contender: make(work) for contender, make in CONTENDERS.items()}
    first, found = {}, {}
    for contender, gradient in gradients.items():
        began = time.perf_counter()
        found[contender] = gradient().clone()
        first[contender] = time.perf_counter() - began
    for _ in range(TRIALS):
        gradients["metamtl Auto"]()
    reference = found["learn2learn"]
    seconds: dict[str, list[float]] = {contender: [] for contender in gradients}
    for _ in range(rounds):
        for contender, gradient in gradients.items():
            began = time.perf_counter()
            gradient()
            seconds[contender].append(time.perf_counter() - began)
    medians = {contender: statistics.median(values) for contender, values in seconds.items()}
    fastest_peer = min(medians["learn2learn"], medians["higher"])
    return {
        contender: {
            "seconds": medians[contender],
            "spread": [min(values), max(values)],
            "first_call": first[contender],
            "times_the_faster_peer": fastest_peer / medians[contender],
            "relative_difference": float((found[contender] - reference).norm() / reference.norm()),
        }
        for contender, values in seconds.items()
    }


MEMORY = ("learn2learn", "higher", "metamtl exact", "metamtl recompute")


def peak(contender: str, steps: int) -> float:
    """MiB above the imports at the peak of one meta-gradient of the conv4 net; in a fresh process."""
    pictures = torch.rand(200, 28, 28, generator=torch.Generator().manual_seed(1))
    family = tasks.FewShot(pictures, torch.arange(200) // 20, ways=5, shots=5, queries=15)
    episode = family.sample(1, torch.Generator().manual_seed(0))
    model = nets.conv4(5, downsample="pool")
    work = Work(model, recipes.maml(steps, 0.01), steps, 0.01, episode, F.cross_entropy)
    if contender == "metamtl recompute":
        work = work._replace(recipe=recipes.maml(steps, 0.01, order="recompute"))
    make = {"learn2learn": learn2learn, "higher": higher}.get(contender, lambda w: ours(w, engines.Loop()))
    gradient = make(work)  # imports the peer
    before = _peak()
    gradient()
    return _peak() - before


def _peak() -> float:
    """Peak memory of this process so far, MiB. Linux keeps it here; getrusage counts the parent's in."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def memory(steps: list[int]) -> dict[str, dict[str, float]]:
    """Peak memory of every contender at every number of inner steps, each in a process of its own."""
    found: dict[str, dict[str, float]] = {}
    for contender in MEMORY:
        for count in steps:
            code = f"from {__package__} import bench; print(bench.peak({contender!r}, {count}))"
            run = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
            )
            found.setdefault(contender, {})[str(count)] = float(run.stdout.splitlines()[-1])
    return found


def evaluation(rounds: int) -> dict[str, float]:
    """Seconds of testing 600 tasks with 10 steps: learn2learn's loop on 60 of them, times ten, and ours."""
    work = images(600, 1, "stride", 10)
    import learn2learn as l2l

    learner = l2l.algorithms.MAML(work.model, lr=work.lr)

    def theirs() -> None:
        for task in range(60):
            one, clone = work.episode[task], learner.clone()
            for _ in range(work.steps):
                clone.adapt(work.loss(clone(one.support.x), one.support.y), first_order=True)
            work.loss(clone(one.query.x), one.query.y).item()

    def mine() -> None:
        evaluate(work.model, work.recipe, work.episode, work.loss)

    seconds: dict[str, list[float]] = {"learn2learn": [], "metamtl": []}
    for _ in range(rounds):
        for name, run, factor in (("learn2learn", theirs, 10), ("metamtl", mine, 1)):
            began = time.perf_counter()
            run()
            seconds[name].append(factor * (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "ratio": medians["learn2learn"] / medians["metamtl"]}


@hydra.main(version_base=None, config_path=CONF, config_name="bench")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    result: dict[str, Any] = {**environment("cpu"), "work": {}}
    for name in cfg.work:
        if name == "memory":
            result["memory"] = memory(list(cfg.memory_steps))
            print(json.dumps(result["memory"], indent=2))
        elif name == "evaluate":
            result["evaluate"] = evaluation(cfg.rounds)
            print(json.dumps(result["evaluate"], indent=2))
        else:
            result["work"][name] = timed(name, cfg.rounds)
            for contender, row in result["work"][name].items():
                print(
                    f"{name:>12} {contender:<36} {row['seconds'] * 1e3:9.2f} ms"
                    f" {row['times_the_faster_peer']:6.1f}x  first {row['first_call']:6.1f} s"
                    f"  difference {row['relative_difference']:.1e}"
                )
        write_json(folder / "bench.json", result)
    print(folder / "bench.json")


if __name__ == "__main__":
    main()
