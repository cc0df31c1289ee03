"""`adapters.with_steps`: the same adaptation with another number of steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch
from metamtl.adapters import Chain, Gradient, LearnedRates, Prototype, Shared, Zeros, with_steps


def problem() -> tuple[nn.Module, Batch]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(2, 1).double()
        return model, Batch(torch.randn(5, 2).double(), torch.randn(5, 1).double())


@pytest.mark.parametrize("lr", [0.1, {"weight": 0.1, "bias": 0.2}], ids=["one rate", "by prefix"])
def test_it_equals_an_adapter_built_with_these_steps(lr: object) -> None:
    model, support = problem()
    found = with_steps(Gradient(1, lr), 4)(model, support, F.mse_loss)
    expected = Gradient(4, lr)(model, support, F.mse_loss)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_learned_rates_are_shared() -> None:
    model, support = problem()
    adapter = Gradient(1, LearnedRates(model, 0.1))
    longer = with_steps(adapter, 3)
    with torch.no_grad():
        for rate in adapter.parameters():
            rate.fill_(0.2)
    found = longer(model, support, F.mse_loss)
    expected = Gradient(3, 0.2)(model, support, F.mse_loss)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)
    assert adapter.steps == 1


def test_the_last_adapter_of_a_chain_has_the_steps() -> None:
    longer = with_steps(Chain(Zeros("bias"), Gradient(1, 0.1, "bias")), 3)
    assert isinstance(longer, Chain) and longer.adapters[-1].steps == 3


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Shared(), "has no gradient steps"),
        (Chain(Gradient(1), Prototype()), "has no gradient steps"),
        (Gradient(2, [0.1, 0.2]), "belong to 2 steps"),
        (Gradient(2, LearnedRates(nn.Linear(1, 1), 0.1, steps=2)), "the number of steps is fixed"),
    ],
    ids=str,
)
def test_where_there_are_no_further_steps(adapter: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"steps=3: .*{message}"):
        with_steps(adapter, 3)
    with pytest.raises((ValueError, TypeError)):
        with_steps(Gradient(1), -1)
