"""Generated code computes what the eager code does, factors included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, meta_backward, rules
from metamtl.engines.backend import inductor

FACTORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "add": lambda p, a, b: p.add(a @ b, alpha=-0.1),
    "add, integer factor": lambda p, a, b: p.add(a @ b, alpha=2),
    "add, in place": lambda p, a, b: p.clone().add_(a @ b, alpha=-0.1),
    "add, product first": lambda p, a, b: (a @ b).add(p, alpha=3.0),
    "add, linear layer": lambda p, a, b: torch.add(p, F.linear(a, b.t()), alpha=3.0),
    "sub": lambda p, a, b: p.sub(a @ b, alpha=3.0),
    "addmm": lambda p, a, b: torch.addmm(p, a, b, beta=2.0, alpha=3.0).relu(),
    "addmm of NaN": lambda p, a, b: torch.addmm(p * torch.nan, a, b, beta=0, alpha=3.0).relu(),
    "baddbmm": lambda p, a, b: torch.baddbmm(p[None], a[None], b[None], beta=0.5, alpha=3.0).relu(),
}


@pytest.mark.slow
@pytest.mark.parametrize("function", FACTORS.values(), ids=FACTORS)
def test_factors_are_not_ignored(function: Callable[..., Tensor]) -> None:
    rng = torch.Generator().manual_seed(0)
    args = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((3, 5), (3, 4), (4, 5))]
    compiled = torch.compile(function, backend=inductor, fullgraph=True)
    torch.testing.assert_close(compiled(*args), function(*args), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "rule", "chunk_size"),
    [(2, rules.Descent(), None), (1, rules.AdamW(), 1)],
    ids=["Descent", "AdamW, one task"],
)
def test_generated_steps_are_those_of_loop(steps: int, rule: rules.Rule, chunk_size: int | None) -> None:
    """A single task and a batch of tasks are different graphs, with different fusions."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 5, width, generator=rng, dtype=torch.float64) for width in (2, 1))
    episode = Episode(Batch(x, y), Batch(x.flip(1), y))
    recipe, results = Recipe(adapters.Gradient(steps, lr=0.1, rule=rule)), []
    for engine in (engines.Loop(), engines.Compiled(chunk_size)):
        model.zero_grad()
        outcome = meta_backward(model, recipe, episode, F.mse_loss, engine=engine)
        results.append([outcome.losses, *(param.grad for param in model.parameters())])
        assert getattr(engine, "compilations", 1) == 1
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
