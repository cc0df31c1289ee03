"""The peers, imported once, and the problems on which metamtl must agree with them."""

from __future__ import annotations

import importlib
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import nets
from metamtl.episode import Batch, Episode


def _peer(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            # learn2learn's torchvision, older than torch, cannot load its image reader; nobody needs it.
            warnings.filterwarnings("ignore", message="Failed to load image Python extension")
            return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{name} cannot be imported ({error}); `make peers` installs it")


@pytest.fixture(scope="session")
def higher() -> ModuleType:
    return _peer("higher")


@pytest.fixture(scope="session")
def l2l() -> ModuleType:
    return _peer("learn2learn")


@dataclass(frozen=True)
class Problem:
    """A model with `body` and `head`, an episode of float64 and a loss; `lr` suits the inner loop."""

    model: nn.Module
    episode: Episode
    loss: Callable[[Any, Any], Tensor]
    lr: float

    def gradients(self, query_loss: Callable[[Batch, Batch], Tensor]) -> dict[str, Tensor]:
        """The gradient of the mean over tasks of `query_loss(support, query)`, somebody else's code."""
        self.model.zero_grad()
        for task in range(self.episode.num_tasks):
            one = self.episode[task]
            assert one.support is not None
            (query_loss(one.support, one.query) / self.episode.num_tasks).backward()
        found = grads(self.model.named_parameters())
        self.model.zero_grad()
        return found


def grads(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """A copy of every `.grad`, zero where there is none."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named}


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The distance of two gradients as a whole, relative to the length of the second."""
    assert found.keys() == expected.keys()
    ours, theirs = (torch.cat([g[n].flatten() for n in expected]) for g in (found, expected))
    assert theirs.norm() > 1e-3
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(params=["mlp", "conv", "conv4"])
def problem(request: pytest.FixtureRequest) -> Problem:
    """An MLP on regression, torch's BatchNorm without running statistics, and our Conv-4."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if request.param == "mlp":
            x, y = (torch.randn(4, 9, 1, generator=rng, dtype=torch.float64) for _ in range(2))
            model: nn.Module = nets.mlp(1, 16, 16, 1)
            episode = Episode(Batch(x[:, :5], y[:, :5]), Batch(x[:, 5:], y[:, 5:]))
            return Problem(model.double(), episode, F.mse_loss, lr=0.05)
        size = 8 if request.param == "conv" else 16
        x = torch.rand(3, 12, 1, size, size, generator=rng, dtype=torch.float64)
        y = torch.arange(3).repeat(4).expand(3, -1)
        model = _small_conv() if request.param == "conv" else nets.conv4(3, hidden=4, size=size)
    episode = Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]), ways=3)
    return Problem(model.double(), episode, F.cross_entropy, lr=0.1)


def _small_conv() -> nn.Module:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.MaxPool2d(2), nn.Tanh(), nn.Flatten())
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(64, 3)))


@pytest.fixture
def relative_error() -> Callable[[dict[str, Tensor], dict[str, Tensor]], float]:
    return error


@pytest.fixture
def grads_of() -> Callable[[Iterable[tuple[str, Tensor]]], dict[str, Tensor]]:
    return grads
