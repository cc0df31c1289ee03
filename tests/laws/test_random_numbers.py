"""Random numbers that torch does not draw: Python's and NumPy's, in a forward pass."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, engines, meta_backward, recipes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


class Net(nn.Module):
    """A smooth net whose features are scaled by a random number at every call."""

    def __init__(self, source: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        if self.source == "random":
            scale: Any = random.random()
        elif self.source == "numpy":
            scale = float(np.random.rand())
        else:
            scale = torch.rand((), dtype=torch.float64)
        return self.head((0.5 + scale) * torch.tanh(self.body(x)))


SOURCES = ["random", "numpy", "torch"]


def gradient(source: str, engine: Any, seed: int = 0, steps: int = 2, **options: Any) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 6, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    data = Episode(Batch(x[:, :3], y[:, :3]), Batch(x[:, 3:], y[:, 3:]))
    model = Net(source).double()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    meta_backward(model, recipes.maml(steps, 0.2, **options), data, F.mse_loss, engine=engine)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(result: Tensor, reference: Tensor) -> float:
    return float((result - reference).norm() / reference.norm())


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_recomputation_draws_the_same_numbers(steps: int, source: str, engine: Any) -> None:
    exact = gradient(source, engine, steps=steps)
    assert distance(gradient(source, engine, seed=1, steps=steps), exact) > 1e-3
    assert distance(gradient(source, engine, steps=steps, differentiation="checkpointed"), exact) <= 1e-10


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("steps", [1, 4])
def test_compiled_draws_what_vmap_draws(steps: int, source: str) -> None:
    """Or says that it does not compile; a number is not frozen."""
    compiled = engines.Compiled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for seed in (0, 1, 0):
            result = gradient(source, compiled, seed=seed, steps=steps)
            assert distance(result, gradient(source, engines.Vmap(), seed=seed, steps=steps)) <= 1e-10


@pytest.mark.parametrize("source", ["random", "numpy"])
def test_compiled_says_that_it_falls_back(source: str) -> None:
    with pytest.warns(UserWarning, match="Vmap"):
        gradient(source, engines.Compiled())
