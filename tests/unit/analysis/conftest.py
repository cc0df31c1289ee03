"""Small tasks in float64: a meta-batch, named tasks, and a reference by plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, nets, recipes


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def batch() -> SimpleNamespace:
    """Four regression tasks on a net of three layers; `batch.args(recipe)` are the arguments of a call."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(4, 7, 3).double(), torch.randn(4, 7, 2).double()
    xq, yq = torch.randn(4, 9, 3).double(), torch.randn(4, 9, 2).double()
    episodes = Episode(Batch(x, y), Batch(xq, yq))

    def args(recipe: Any) -> Any:
        return model, recipe, episodes, F.mse_loss

    return SimpleNamespace(model=model, episodes=episodes, loss=F.mse_loss, args=args)


@pytest.fixture
def named() -> SimpleNamespace:
    """Three named tasks with heads and losses of their own, on one input."""
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    model = nets.NamedHeads(body, features=6, outputs={"a": 3, "b": 2, "c": 1}).double()
    x = torch.randn(12, 4).double()
    episodes = {
        "a": Episode(None, Batch(x, torch.arange(12) % 3)),
        "b": Episode(None, Batch(x, torch.arange(12) % 2)),
        "c": Episode(None, Batch(x, torch.randn(12, 1).double())),
    }
    loss = {"a": F.cross_entropy, "b": F.cross_entropy, "c": F.mse_loss}
    args = (model, recipes.joint(), episodes, loss)
    return SimpleNamespace(model=model, episodes=episodes, loss=loss, args=args)


@pytest.fixture
def reference() -> Callable[..., Tensor]:
    """`reference(args, steps, lr)`: the meta-gradients `[T, n]` of MAML, by plain autograd."""

    def compute(args: Any, steps: int = 0, lr: float = 0.0) -> Tensor:
        model, _, episodes, loss = args
        start = dict(model.named_parameters())
        rows = []
        for t in range(episodes.num_tasks):
            one, params = episodes[t], start
            for _ in range(steps):
                value = loss(torch.func.functional_call(model, params, (one.support.x,)), one.support.y)
                grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
                params = {n: p - lr * g for (n, p), g in zip(params.items(), grads)}
            value = loss(torch.func.functional_call(model, params, (one.query.x,)), one.query.y)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(start.values()))]))
        return torch.stack(rows)

    return compute
