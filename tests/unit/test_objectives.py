"""`episode_loss`: the mean over all labels of an episode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, meta_backward, nets, recipes
from metamtl.losses import MISSING, mean_over_labeled
from metamtl.objectives import base as objectives

NAN = float("nan")
T, S, Q = 4, 6, 9


def net(outputs: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nets.mlp(3, 5, outputs).double()


def episode(y: Tensor) -> Episode:
    """The first S examples are the support set; labels are as many of them as `y` says."""
    x = torch.randn(T, S + Q, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Episode(Batch(x[:, :S], y[:, :S]), Batch(x[:, S:], y[:, S:]))


def classes() -> Tensor:
    y = torch.randint(3, (T, S + Q), generator=torch.Generator().manual_seed(2))
    y[0, 2:S] = y[1, S + 1 :] = y[2, ::2] = MISSING
    y[3, :S] = MISSING  # a support set without a label
    return y


def targets() -> Tensor:
    y = torch.randn(T, S + Q, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y[0, 2:S, 0] = y[1, S + 1 :, 1] = y[2, ::2] = NAN
    y[3, :S] = NAN
    return y


@pytest.mark.parametrize("engine", [None, engines.Loop(), engines.Vmap(), engines.Vmap(3)], ids=repr)
@pytest.mark.parametrize(
    ("loss", "y", "outputs"),
    [
        (F.cross_entropy, classes(), 3),
        (mean_over_labeled(F.mse_loss), targets(), 2),
        (mean_over_labeled(F.l1_loss), targets(), 2),
    ],
)
def test_the_gradient_is_that_of_the_mean_over_all_labels(
    loss: Any, y: Tensor, outputs: int, engine: Any
) -> None:
    model, data = net(outputs), episode(y)
    recipe = Recipe(adapters.Shared(), objective=objectives.episode_loss)
    meta_backward(model, recipe, data, loss, engine=engine)
    found = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    assert data.support is not None
    x = torch.cat([data.support.x, data.query.x], 1)
    torch.stack([loss(model(x[t]), y[t]) for t in range(T)]).mean().backward()
    for gradient, param in zip(found, model.parameters()):
        torch.testing.assert_close(gradient, param.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", [F.cross_entropy, mean_over_labeled(F.mse_loss)])
def test_named_tasks_alike(loss: Any) -> None:
    named = nets.named_heads(net(5), {"case": 3}).double()
    y = classes()[0] if loss is F.cross_entropy else targets()[0, :, :1].expand(-1, 3)
    whole = episode(y.expand(T, *y.shape))[0]
    recipe = Recipe(adapters.Shared(), objective=objectives.episode_loss)
    meta_backward(named, recipe, {"case": whole}, {"case": loss})
    found = [param.grad.clone() for param in named.parameters() if param.grad is not None]
    named.zero_grad()
    assert whole.support is not None
    loss(named(torch.cat([whole.support.x, whole.query.x]), task="case"), y).backward()
    expected = [param.grad for param in named.parameters() if param.grad is not None]
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-14)


def test_the_objective_keeps_the_type_of_the_loss() -> None:
    """Counts up to 2048 only are exact in half precision."""
    x = torch.zeros(1, 5000, 3, dtype=torch.float16)
    y = torch.zeros(1, 5000, 1, dtype=torch.float16)

    def measure(params: Any, batch: Batch) -> Tensor:
        return torch.tensor(3.0 if len(batch.y) == 4999 else 1.0, dtype=torch.float16)

    for support, query, value in ((4999, 5000, 2.0), (1, 4999, 3.0)):
        parts = Batch(x[0, :support], y[0, :support]), Batch(x[0, :query], y[0, :query])
        found = objectives.episode_loss(objectives.Adaptation({}, {}, *parts, measure))
        assert found.dtype == torch.float16 and float(found) == pytest.approx(value, abs=2e-3)


def test_a_query_set_without_a_label_is_named() -> None:
    y = classes()
    y[2, S:] = MISSING
    model = net(3)
    with pytest.raises(FloatingPointError, match=r"loss of tasks \[2\] of 4"):
        meta_backward(model, recipes.joint(objective=objectives.episode_loss), episode(y), F.cross_entropy)
