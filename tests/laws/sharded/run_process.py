"""One process of a group: what it computes beside a single process, as JSON.

Usage: python run_process.py RANK SIZE FOLDER AGGREGATORS
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Metric,
    Recipe,
    aggregators,
    engines,
    evaluate,
    meta_backward,
    recipes,
)

T = 5  # tasks: with three processes the shares are uneven, with seven two processes have none
OPTIONS: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 0.5},
    "COSMOS": {"lambda_": 0.1, "weights": torch.ones(T)},
    "Constant": {"weights": torch.arange(1.0, T + 1)},
    "DWA": {"calls_per_epoch": 1},
    "FAMO": {"num_tasks": T},
    "FairGrad": {"alpha": 1.0},
    "IMTLL": {"shape": T},
    "Krum": {"n_byzantine": 0},
    "PBI": {"theta": 5.0, "weights": torch.ones(T)},
    "STCH": {"mu": 0.1},
    "TrimmedMean": {"trim_number": 1},
    "UW": {"shape": T},
}


def aggregator(name: str) -> Any:
    return getattr(aggregators, name)(**OPTIONS.get(name, {})).double()


def episode(scale: float = 1.0) -> Episode:
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(T, 6, width, generator=rng, dtype=torch.float64) for width in (3, 1))
    return Episode(Batch(scale * x, y), Batch(x.flip(1), y))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def gradients(recipe: Recipe, engine: engines.Engine, steps: int = 3) -> list[list[torch.Tensor]]:
    """Of the model and of the recipe, for several steps: the state of an aggregator counts, too."""
    net, results = model(), []
    for step in range(steps):
        params = [*net.parameters(), *recipe.parameters()]
        for param in params:
            param.grad = None
        outcome = meta_backward(net, recipe, episode(1.0 + step), F.mse_loss, engine=engine)
        results.append([outcome.losses, *(param.grad for param in params if param.grad is not None)])
    return results


def error(results: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> float:
    pairs = [pair for ours, others in zip(results, expected) for pair in zip(ours, others, strict=True)]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)


def check_aggregators(names: list[str]) -> dict[str, float]:
    def recipe(name: str) -> Recipe:
        return recipes.maml(2, 0.1, aggregator=aggregator(name))

    return {
        name: error(
            gradients(recipe(name), engines.Sharded(engines.Vmap())),
            gradients(recipe(name), engines.Vmap()),
        )
        for name in names
    }


def check_adapters() -> dict[str, float]:
    def learned(name: str) -> Recipe:
        weighting = {"aggregator": aggregators.UW(T).double()} if name == "weighted" else {}
        return recipes.metasgd(model(), 2, 0.1, **weighting)

    return {
        name: error(
            gradients(learned(name), engines.Sharded(engines.Loop())),
            gradients(learned(name), engines.Loop()),
        )
        for name in ("weighted", "mean")
    }


def check_evaluation() -> dict[str, float]:
    metrics = {"error": Metric(lambda output, y: (output - y).abs().squeeze(-1), higher_is_better=False)}
    values = [
        evaluate(model(), recipes.maml(3, 0.1), episode(), F.mse_loss, metrics=metrics, engine=engine)[
            "error"
        ]
        for engine in (engines.Sharded(engines.Vmap()), engines.Vmap())
    ]
    return {"evaluate": float((values[0].values - values[1].values).abs().max())}


def check_errors() -> dict[str, str]:
    """The message that this process receives."""
    bad = episode()
    bad.support.x[T - 1] = torch.nan  # a task of the last process
    messages = {}
    sharded = engines.Sharded(engines.Vmap())

    def fails(name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as exception:
            messages[name] = f"{type(exception).__name__}: {exception}"

    net = model()
    fails("nan", lambda: meta_backward(net, recipes.maml(1, 0.1), bad, F.mse_loss, engine=sharded))
    assert all(param.grad is None for param in net.parameters())

    def broken(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if dist.get_rank() == dist.get_world_size() - 1:
            raise KeyError("only here")
        return F.mse_loss(output, y)

    fails("raised", lambda: meta_backward(net, recipes.maml(1, 0.1), episode(), broken, engine=sharded))
    assert all(param.grad is None for param in net.parameters())
    return messages


def check_traffic() -> dict[str, list[int]]:
    """How many numbers this process hands to each kind of collective operation in one step."""
    counts: dict[str, int] = {}

    def counting(name: str, place: int) -> Callable[..., Any]:
        original = getattr(dist, name)

        def call(*args: Any, **options: Any) -> Any:
            tensors = args[place] if isinstance(args[place], list) else [args[place]]
            counts[name] = counts.get(name, 0) + sum(tensor.numel() for tensor in tensors)
            return original(*args, **options)

        return call

    kinds, results = {"all_reduce": 0, "all_gather": 1, "all_to_all": 1}, {}
    for name in ("Mean", "MGDA", "GradDrop"):
        with ExitStack() as stack:
            for kind, place in kinds.items():
                stack.enter_context(mock.patch.object(dist, kind, counting(kind, place)))
            counts.clear()
            gradients(recipes.maml(2, 0.1, aggregator=aggregator(name)), engines.Sharded(engines.Vmap()), 1)
            results[name] = [counts.get(kind, 0) for kind in kinds]
    return results


def process(rank: int, size: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=size)
    results: dict[str, Any] = {
        "aggregators": check_aggregators(names),
        "adapters": check_adapters(),
        "evaluation": check_evaluation(),
        "errors": check_errors(),
        "traffic": check_traffic(),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()  # a process that leaves closes connections that others may still use
    dist.destroy_process_group()


if __name__ == "__main__":
    process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4].split(","))
    os._exit(0)  # threads of torch may abort the process while the interpreter shuts down
