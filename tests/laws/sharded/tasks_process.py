"""The processes of a group that share the tasks of a meta-batch: what they compute beside one process.

Usage: python tasks_process.py SIZE FOLDER AGGREGATORS
"""

from __future__ import annotations

from typing import Any

import torch
from process import aggregator, bytes_sent, error, main, message
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Metric,
    Recipe,
    aggregators,
    analysis,
    engines,
    evaluate,
    meta_backward,
    nets,
    recipes,
)

T = 5  # tasks: with three processes the shares are uneven, with seven two processes have none


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


def check_aggregators(names: list[str]) -> dict[str, float]:
    def recipe(name: str) -> Recipe:
        return recipes.maml(2, 0.1, aggregator=aggregator(name, T))

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


def check_mixed_shapes() -> dict[str, float]:
    """Tasks with different numbers of examples, whose shapes alternate between the processes."""
    data, results = episode(), []
    episodes = [
        Episode(data[t : t + 1].support, Batch(*(leaf[t : t + 1, : 6 - t % 2] for leaf in data.query)))
        for t in range(T)
    ]
    for engine in (engines.Sharded(engines.Vmap()), engines.Loop()):
        net, recipe = (
            model(),
            recipes.maml(2, 0.1, aggregator=aggregators.Constant(torch.arange(1.0, T + 1))),
        )
        losses = meta_backward(net, recipe, episodes, F.mse_loss, engine=engine).losses
        values = evaluate(net, recipe, episodes, F.mse_loss, engine=engine).values
        results.append([[losses, values, *(param.grad for param in net.parameters())]])
    return {"mixed shapes": error(*results)}


def check_evaluation() -> dict[str, float]:
    metrics = {"error": Metric(lambda output, y: (output - y).abs().squeeze(-1), higher_is_better=False)}
    values = [
        evaluate(model(), recipes.maml(3, 0.1), episode(), F.mse_loss, metrics=metrics, engine=engine)[
            "error"
        ]
        for engine in (engines.Sharded(engines.Vmap()), engines.Vmap())
    ]
    return {"evaluate": float((values[0].values - values[1].values).abs().max())}


def check_analysis() -> dict[str, float]:
    """Sketched and exact gradients of tasks that several processes share."""
    args = (model(), recipes.maml(2, 0.1), episode(), F.mse_loss)
    gramians = {
        name: [
            analysis.gradients(*args, project=project, engine=engine).gramian()
            for engine in (engines.Sharded(engines.Vmap()), engines.Vmap())
        ]
        for name, project in {"exact": None, "sketched": analysis.Sketch(dim=8)}.items()
    }
    return {name: float((a - b).norm() / b.norm()) for name, (a, b) in gramians.items()}


def check_errors() -> dict[str, str]:
    """The message that this process receives."""
    bad, net, sharded = episode(), model(), engines.Sharded(engines.Vmap())
    bad.support.x[T - 1] = torch.nan  # a task of the last process

    def broken(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if dist.get_rank() == dist.get_world_size() - 1:
            raise KeyError("only here")
        return F.mse_loss(output, y)

    maml = recipes.maml(1, 0.1)
    messages = {
        "nan": message(lambda: meta_backward(net, maml, bad, F.mse_loss, engine=sharded)),
        "raised": message(lambda: meta_backward(net, maml, episode(), broken, engine=sharded)),
    }
    assert all(param.grad is None for param in net.parameters())
    return messages


def check_traffic() -> dict[str, int]:
    """The bytes that this process sends in a step of a larger net, by what the aggregator reads."""
    net, rng = nets.mlp(64, 256, 256, 8), torch.Generator().manual_seed(0)
    data = Batch(torch.randn(T, 4, 64, generator=rng), torch.randn(T, 4, 8, generator=rng))

    def step(name: str) -> Any:
        recipe = recipes.maml(1, 0.1, aggregator=getattr(aggregators, name)())
        return lambda: meta_backward(
            net, recipe, Episode(data, data), F.mse_loss, engine=engines.Sharded(engines.Loop())
        )

    names = {"losses": "Mean", "gramian": "MGDA", "rows": "GradDrop"}
    return {
        "parameters": sum(param.numel() for param in net.parameters()),
        **{reads: bytes_sent(step(name)) for reads, name in names.items()},
    }


def compute(arguments: list[str]) -> dict[str, Any]:
    return {
        "aggregators": check_aggregators(arguments[0].split(",")),
        "adapters": check_adapters(),
        "evaluation": check_evaluation(),
        "mixed shapes": check_mixed_shapes(),
        "analysis": check_analysis(),
        "errors": check_errors(),
        "traffic": check_traffic(),
    }


if __name__ == "__main__":
    main(compute)
