"""Analyses through the inner loop of another library agree with those through our own."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, adapters, analysis, engines, interop, recipes


def two_steps(fmodel: nn.Module, diffopt: Any, support: Batch, loss: Any) -> None:
    for _ in range(2):
        diffopt.step(loss(fmodel(support.x), support.y))


def test_a_loop_of_higher(higher: ModuleType) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        x, y = torch.randn(3, 6, 3).double(), torch.randn(3, 6, 2).double()
    adapter = interop.HigherAdapter(two_steps, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    episodes = Episode(Batch(x, y), Batch(-x, y))
    ours = (model, recipes.Recipe(adapters.Gradient(2, 0.1)), episodes, F.mse_loss)
    theirs = (model, recipes.Recipe(adapter), episodes, F.mse_loss)
    grads = [analysis.gradients(*args, engine=engines.Loop()) for args in (ours, theirs)]
    torch.testing.assert_close(grads[1].matrix(), grads[0].matrix(), rtol=1e-10, atol=1e-12)
    derivatives = analysis.directional_derivatives(*theirs, grads[1])
    assert derivatives.mode == "reverse"
    torch.testing.assert_close(derivatives.matrix, -grads[0].gramian(), rtol=1e-10, atol=1e-12)
    second = [
        analysis.mixed_second_derivatives(*args, grads=rows).matrix
        for args, rows in zip((ours, theirs), grads)
    ]
    torch.testing.assert_close(second[1], second[0], rtol=1e-9, atol=1e-11)
