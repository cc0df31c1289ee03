"""The processes of a group that share the examples of named tasks: what they compute beside one process.

Usage: python examples_process.py SIZE FOLDER AGGREGATORS
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from process import aggregator, bytes_sent, error, main, message
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from metamtl import (
    Batch,
    Episode,
    Metric,
    Recipe,
    aggregators,
    engines,
    evaluate,
    meta_backward,
    nets,
    recipes,
)
from metamtl.losses import MISSING, mean_over_labeled
from metamtl.metrics import accuracy, mse

Data = dict[str, Episode]
Splits = Mapping[str, list[int]]  # for each task, the examples of each process
LOSS = {
    "kind": F.cross_entropy,
    "size": mean_over_labeled(F.mse_loss),
    "mark": nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)),
}
TASKS = tuple(LOSS)
# With two processes the second has no label of "size"; with three the last one has no label at all.
SPLITS = {1: [11], 2: [5, 6], 3: [5, 4, 2]}
EMPTY = {1: [11], 2: [11, 0], 3: [4, 0, 7]}  # a process without examples


def batch(seed: int, scale: float = 1.0) -> Batch:
    """Inputs, and labels of all tasks."""
    rng = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(11, 4, generator=rng, dtype=torch.float64)
    kind, mark = (torch.randint(3, (11,), generator=rng) for _ in range(2))
    size = torch.randn(11, generator=rng, dtype=torch.float64)
    size[5:], kind[9:], mark[9:], mark[0] = torch.nan, MISSING, MISSING, MISSING
    return Batch(x, {"kind": kind, "size": size, "mark": mark})


def whole(scale: float = 1.0, *, shared: bool = True) -> Data:
    """Tasks that share one input, or have different ones."""
    batches = {task: batch(0 if shared else number, scale) for number, task in enumerate(TASKS)}
    x = batches["kind"].x
    return {task: Episode(None, Batch(x if shared else b.x, b.y[task])) for task, b in batches.items()}


def part(data: Data, splits: Splits) -> Data:
    """The examples of this process."""
    parts, inputs = {}, {}
    for task, episode in data.items():
        own = [tensor.split(splits[task])[dist.get_rank()] for tensor in episode.query]
        x = inputs.setdefault(id(episode.query.x), own[0])
        parts[task] = replace(episode, query=Batch(x, own[1]))
    return parts


def even(splits: list[int]) -> dict[str, list[int]]:
    return dict.fromkeys(TASKS, splits)


def model() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
    net = nets.NamedHeads(body, 4, {"kind": 3, "size": 1, "mark": 3})
    net.body.register_parameter("unused", nn.Parameter(torch.ones(2)))
    return net.double()


def steps(recipe: Recipe, data: Callable[[float], Data], engine: Any) -> list[list[Any]]:
    """Losses and gradients of two steps: the state of an aggregator counts, too."""
    net, results = model(), []
    params = [*net.parameters(), *recipe.parameters()]
    for step in range(2):
        for param in params:
            param.grad = None
        outcome = meta_backward(net, recipe, data(1.0 + step), LOSS, engine=engine)
        results.append([outcome.losses, *(param.grad for param in params)])
    return results


def deviations(
    make: Callable[[], Recipe],
    data: Callable[[float], Data],
    layouts: Mapping[str, Mapping[str, list[int]]],
) -> dict[str, float]:
    """Of several layouts from the computation of one process."""
    expected = steps(make(), data, engines.Loop())
    return {
        name: error(steps(make(), partial(part_of, data, splits), engines.Sharded()), expected)
        for name, splits in layouts.items()
    }


def part_of(data: Callable[[float], Data], splits: Splits, scale: float) -> Data:
    return part(data(scale), splits)


def check_aggregators(names: list[str]) -> dict[str, float]:
    size, results = dist.get_world_size(), {}
    for name in names:
        for layer in (None, "body"):
            if layer and aggregator(name, 3).by_parameter:
                continue

            def recipe(name: str = name, layer: str | None = layer) -> Recipe:
                return recipes.joint(aggregator=aggregator(name, 3), layer=layer)

            layouts = {"missing": even(SPLITS[size]), "empty": even(EMPTY[size])}
            if size == 1:  # one process has all examples in both
                del layouts["empty"]
            for kind, value in deviations(recipe, whole, layouts).items():
                results[f"{name} {layer} {kind}"] = value
    return results


def check_inputs_and_adapters() -> dict[str, float]:
    """Tasks with inputs of their own, of which a process may have none, and tasks that adapt."""
    size = dist.get_world_size()
    uneven = {"kind": SPLITS[size], "size": EMPTY[size], "mark": EMPTY[size][::-1]}

    def different(scale: float) -> Data:
        return whole(scale, shared=False)

    def adapted(scale: float) -> Data:
        data = whole(scale, shared=False)
        labeled = {task: batch(7) for task in data}
        return {
            task: replace(e, support=Batch(labeled[task].x[:5], labeled[task].y[task][:5]))
            for task, e in data.items()
        }

    methods = {
        "own inputs": (lambda: recipes.joint(aggregator=aggregator("MGDA", 3)), different),
        "maml": (lambda: recipes.maml(2, 0.1, aggregator=aggregator("UPGrad", 3)), adapted),
        "metasgd": (lambda: recipes.metasgd(model(), 2, 0.1), adapted),
        "metasgd, surgery": (
            lambda: recipes.metasgd(model(), 2, 0.1, aggregator=aggregator("PCGrad", 3)),
            adapted,
        ),
    }
    return {name: deviations(make, data, {"": uneven})[""] for name, (make, data) in methods.items()}


def check_evaluation() -> dict[str, bool]:
    covariance = Metric(lambda output, y: (output.squeeze(-1) * y).mean() - output.mean() * y.mean(), True)
    metrics = {
        "kind": {"accuracy": accuracy},
        "size": {"mse": mse, "whole": covariance},
        "mark": {"accuracy": accuracy},
    }
    data, net, size = whole(), model(), dist.get_world_size()
    results = {}
    for kind, splits in (("missing", SPLITS[size]), ("empty", EMPTY[size])):
        for measures in (None, metrics):
            ours, expected = (
                evaluate(net, recipes.joint(), episodes, LOSS, metrics=measures, engine=engine)
                for episodes, engine in ((part(data, even(splits)), engines.Sharded()), (data, None))
            )
            flat = [(ours[task], expected[task]) for task in TASKS]
            if measures:
                flat = [
                    (ours[task][name], expected[task][name]) for task in TASKS for name in measures[task]
                ]
            close = [torch.allclose(a.values, b.values, rtol=1e-12, atol=0) and a.n == b.n for a, b in flat]
            results[f"{kind} {measures is None}"] = all(close) and all(
                a.num_missing == b.num_missing for a, b in flat
            )
    own = [episode.query for episode in engines.own_examples(data).values()]
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, [query.y for query in own])
    joined = [torch.cat(column) for column in zip(*parts)]
    results["own_examples"] = own[0].x is own[1].x and all(
        torch.equal(a.nan_to_num(), data[task].query.y.nan_to_num()) for a, task in zip(joined, TASKS)
    )
    return results


def check_errors() -> dict[str, str]:
    """The message that this process receives."""
    size, net = dist.get_world_size(), model()
    last = dist.get_rank() == size - 1
    data = part(whole(), even({2: [8, 3], 3: [3, 3, 5]}[size]))

    def step(episodes: Data, recipe: Recipe | None = None, loss: Any = LOSS, net: nn.Module = net) -> str:
        recipe = recipe or recipes.joint()
        return message(lambda: meta_backward(net, recipe, episodes, loss, engine=engines.Sharded()))

    def changed(task: str, x: Tensor | None = None, y: Tensor | None = None) -> Data:
        query = data[task].query
        new = Batch(query.x if x is None else x, query.y if y is None else y)
        return {**data, task: replace(data[task], query=new)}

    def broken(output: Tensor, y: Tensor) -> Tensor:
        if last:
            raise KeyError("only here")
        return F.cross_entropy(output, y)

    sizes = data["size"].query.y
    support = Batch(torch.full((2, 4), 2.0 if last else 1.0).double(), torch.ones(2).double())
    metrics = {} if last else {task: {"mse": mse} for task in TASKS}
    messages = {
        "nan": step(changed("kind", x=data["kind"].query.x * torch.nan) if last else data),
        "missing": step({task: data[task] for task in TASKS[:2]} if last else data),
        "order": step(dict(reversed(data.items())) if last else data),
        "raised": step(data, loss={**LOSS, "kind": broken}),
        "bad call": step(changed("size", y=sizes[:1]) if last else data),
        "sum": step(data, loss={**LOSS, "kind": nn.CrossEntropyLoss(reduction="sum")}),
        "unlabeled": step(changed("size", y=sizes * torch.nan)),
        "support": step({**data, "size": replace(data["size"], support=support)}, recipes.maml(1, 0.1)),
        "wrapped": step(data, net=DistributedDataParallel(net)),
        "no metrics": message(
            lambda: evaluate(net, recipes.joint(), data, LOSS, metrics=metrics, engine=engines.Sharded())
        ),
    }
    messages["changed"] = str([name for name, param in net.named_parameters() if param.grad is not None])
    return messages


def check_traffic() -> dict[str, Any]:
    """The bytes that this process sends in a step of a larger net, by layout and what is read."""
    net = nets.named_heads(nets.mlp(64, 512, 256, 1), dict.fromkeys(TASKS, 3))
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(32, 64, generator=rng)
    data = {task: Episode(None, Batch(x, torch.randint(3, (32,), generator=rng))) for task in TASKS}
    loss = dict.fromkeys(TASKS, F.cross_entropy)

    def step(name: str, layer: str | None) -> Any:
        recipe = recipes.joint(aggregator=getattr(aggregators, name)(), layer=layer)
        return lambda: meta_backward(net, recipe, data, loss, engine=engines.Sharded())

    names = {"losses": "Mean", "gramian": "MGDA", "rows": "GradDrop"}
    layers = {"examples": None, "features": "body"}
    return {
        "shared": sum(param.numel() for param in net.body.parameters()),
        "heads": sum(param.numel() for param in net.heads.parameters()),
        "features": 32 * 256,
        "sent": {
            layout: {reads: bytes_sent(step(name, layer)) for reads, name in names.items()}
            for layout, layer in layers.items()
        },
    }


def compute(arguments: list[str]) -> dict[str, Any]:
    return {
        "aggregators": check_aggregators(arguments[0].split(",")),
        "others": check_inputs_and_adapters(),
        "evaluation": check_evaluation(),
        "errors": check_errors() if dist.get_world_size() > 1 else {},
        "traffic": check_traffic(),
    }


if __name__ == "__main__":
    main(compute)
