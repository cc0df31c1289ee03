"""Recomputed steps: the same gradient, dropout included, and nothing stored but the parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, meta_backward, nets

ADAPTS = [None, "head", "body"]
ENGINES = [engines.Loop(), engines.Vmap(), engines.Vmap(2)]


def _episode(tasks: int = 3, width: int = 4) -> Episode:
    rng = torch.Generator().manual_seed(0)

    def batch() -> Batch:
        x = torch.randn(tasks, 6, width, generator=rng, dtype=torch.float64)
        return Batch(x, torch.randint(3, (tasks, 6), generator=rng))

    return Episode(batch(), batch())


def _gradient(model: nn.Module, adapter: adapters.Gradient, engine: engines.Engine) -> torch.Tensor:
    model.zero_grad()
    torch.manual_seed(3)
    meta_backward(model, Recipe(adapter), _episode(), F.cross_entropy, engine=engine)
    return torch.cat([param.grad.flatten() for param in model.parameters()])


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("adapts", ADAPTS)
@pytest.mark.parametrize("segment", [1, 2, 3, 5])
def test_the_gradient_is_the_exact_one(adapts, segment, engine):
    torch.manual_seed(0)
    model = nets.mlp(4, 8, 3).double()
    rates = (0.1, 0.2, 0.3, 0.4, 0.5)
    exact = _gradient(model, adapters.Gradient(5, rates, adapts), engine)
    again = adapters.Gradient(5, rates, adapts, differentiation=adapters.Checkpointed(segment))
    assert torch.allclose(_gradient(model, again, engine), exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("segment", [1, 2])
@pytest.mark.parametrize("engine", ENGINES[:2], ids=repr)
def test_dropout_draws_the_same_numbers_again(segment, engine):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 3)).double()
    exact = _gradient(model, adapters.Gradient(4, 0.5), engine)
    again = _gradient(
        model, adapters.Gradient(4, 0.5, differentiation=adapters.Checkpointed(segment)), engine
    )
    assert torch.equal(again, exact)
    state = torch.get_rng_state()
    _gradient(model, adapters.Gradient(4, 0.5), engine)
    after_exact = torch.get_rng_state()
    torch.set_rng_state(state)
    _gradient(model, adapters.Gradient(4, 0.5, differentiation=adapters.Checkpointed(segment)), engine)
    assert torch.equal(torch.get_rng_state(), after_exact)


def test_truncated_runs_from_first_order_to_exact():
    torch.manual_seed(0)
    model, engine = nets.mlp(4, 8, 3).double(), engines.Loop()

    def truncated(last: int) -> torch.Tensor:
        return _gradient(model, adapters.Gradient(4, 0.3, differentiation=adapters.Truncated(last)), engine)

    assert torch.equal(
        truncated(0), _gradient(model, adapters.Gradient(4, 0.3, differentiation="first_order"), engine)
    )
    exact = _gradient(model, adapters.Gradient(4, 0.3), engine)
    assert torch.equal(truncated(4), exact)
    gaps = [float((truncated(last) - exact).norm()) for last in range(5)]
    assert gaps == sorted(gaps, reverse=True) and gaps[3] > 0


def test_one_steps_graph_at_a_time_is_kept(stored):
    """Tensors saved for the backward pass: parameters and support per step, not the step's activations."""
    torch.manual_seed(0)
    model = nets.mlp(4, 64, 64, 3)
    x, y = torch.randn(500, 4), torch.randint(3, (500,))

    def after(steps: int) -> int:
        return stored(
            adapters.Gradient(steps, 0.1, differentiation="checkpointed")(model, (x, y), F.cross_entropy)
        )

    size = sum(param.numel() * 4 for param in model.parameters())
    growth = (after(9) - after(3)) / 6
    assert growth <= 1.2 * size


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="every=0"):
        adapters.Gradient(3, 0.1, differentiation=adapters.Checkpointed(0))
    with pytest.raises(ValueError, match=r"differentiation='exacte' is not one of 'exact', 'checkpointed'"):
        adapters.Gradient(3, 0.1, differentiation="exacte")
