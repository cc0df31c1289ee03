"""The cost of relatedness matrices, and of logging them in a training: `metamtl analysis_cost`.

Computes every matrix, its gradients included, for T few-shot tasks on Conv-4, without adaptation and with
MAML. Counts calls of autograd and passes in forward mode, and times the matrices in one process,
interleaved. The cost of logging is the difference in time between the steps of a training that are logged
and the others. Writes `analysis_cost.json`.

Examples:
  metamtl analysis_cost tasks=10 rounds=3
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, analysis, engines, nets, recipes

from . import train
from .tables.report import environment, write_json
from .utils.command import command
from .utils.configs import compose
from .utils.recorded import Sources

WAYS, QUERIES = 5, 5
RECIPES: dict[str, Callable[[], Recipe]] = {
    "joint": recipes.joint,
    "maml": lambda: recipes.maml(1, 0.1),
}
Matrix = Callable[..., analysis.Relatedness]
MATRICES: dict[str, Matrix] = {
    "cosine": lambda *args, engine: analysis.cosine(analysis.gradients(*args, engine=engine)),
    "transfer": lambda *args, engine: analysis.transfer(analysis.gradients(*args, engine=engine), 0.1),
    "look_ahead": lambda *args, engine: analysis.look_ahead(*args, 0.1, engine=engine),
    "linearized": lambda *args, engine: analysis.linearized(*args, 0.1, engine=engine),
    "mixed_second_derivatives": analysis.mixed_second_derivatives,
}


class Work:
    """T tasks of five classes, with one support and five query images each; Conv-4 with 64 filters.

    The images are random, because the time does not depend on them.
    """

    def __init__(self, tasks: int, recipe: str) -> None:
        rng = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.tasks, self.model, self.recipe = tasks, nets.conv4(WAYS), RECIPES[recipe]()

        def batch(per_class: int) -> Batch:
            y = torch.arange(WAYS).repeat(per_class)
            x = torch.rand(tasks, len(y), 1, 28, 28, generator=rng)
            return Batch(x, y.expand(tasks, -1))

        self.episode = Episode(batch(1), batch(QUERIES))

    def matrix(self, name: str, engine: engines.Engine | None = None) -> analysis.Relatedness:
        return MATRICES[name](self.model, self.recipe, self.episode, F.cross_entropy, engine=engine)

    def passes(self, name: str) -> dict[str, float]:
        """Calls of autograd, products with a Hessian, and passes in forward mode, for each task.

        A call whose outputs have cotangents multiplies the Hessian of one task by a vector; a product with
        the Hessian of the mean objective consists of one for each task.
        """
        with (
            mock.patch("torch.autograd.grad", wraps=torch.autograd.grad) as backward,
            mock.patch("torch.func.jvp", wraps=torch.func.jvp) as forward,
        ):
            self.matrix(name, engines.Loop())
        products = sum(len(call.args) > 2 for call in backward.call_args_list)
        return {
            "backward": (backward.call_count - products) / self.tasks,
            "hessian_products": products / self.tasks**2,
            "forward_mode": forward.call_count / self.tasks,
        }


def measured(tasks: int, rounds: int) -> dict[str, Any]:
    """Passes for each task and seconds of every matrix under every recipe."""
    works = {recipe: Work(tasks, recipe) for recipe in RECIPES}
    cases = [(recipe, name) for recipe in RECIPES for name in MATRICES]
    passes = {case: works[case[0]].passes(case[1]) for case in cases}
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for recipe, name in cases:
            start = time.perf_counter()
            works[recipe].matrix(name)
            seconds[recipe, name].append(time.perf_counter() - start)
    return {
        recipe: {
            name: {"passes": passes[recipe, name], "seconds": statistics.median(seconds[recipe, name])}
            for name in MATRICES
        }
        for recipe in RECIPES
    }


def logging_cost(steps: int, every: int) -> dict[str, Any]:
    """The median seconds of a training step with and without a log of relatedness, in one training."""
    options = ["recipe=maml", f"steps={steps}", "validate.times=1", "test.tasks=10", "device=cpu"]
    options += ["engine={_target_: metamtl.engines.Vmap}", f"analyse.every={every}"]
    sources = Sources()
    with tempfile.TemporaryDirectory() as folder:
        train.run(compose("train", options), Path(folder), sources)
    (recorded,) = sources.built.values()
    seconds = [after - before for before, after in pairwise(recorded.seconds[: steps + 1])]
    logged = statistics.median(seconds[every::every])  # the first log imports what it needs
    plain = statistics.median(s for step, s in enumerate(seconds) if step % every)
    slowdown = (logged - plain) / (every * plain)
    return {"steps": steps, "every": every, "seconds": [plain, logged], "slowdown": slowdown}


@command("analysis_cost")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    recipes_ = measured(cfg.tasks, cfg.rounds)
    log = logging_cost(cfg.log.steps, cfg.log.every)
    sizes = {"tasks": cfg.tasks, "rounds": cfg.rounds}
    write_json(
        folder / "analysis_cost.json", {**environment("cpu"), **sizes, "recipes": recipes_, "logging": log}
    )
    for recipe, rows in recipes_.items():
        for name, row in rows.items():
            passes = ", ".join(f"{count:g} {kind}" for kind, count in row["passes"].items())
            print(f"{recipe:>6} {name:<25} {row['seconds']:7.2f} s; for each task: {passes}")
    print(f"logging every {log['every']} steps: {log['slowdown']:+.1%}; {folder / 'analysis_cost.json'}")


if __name__ == "__main__":
    raise SystemExit(main())
