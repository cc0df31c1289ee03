"""BatchNorm's policies: where the statistics come from, in every engine and order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Metric,
    Recipe,
    adapters,
    engines,
    evaluate,
    meta_backward,
    nets,
    recipes,
)
from metamtl.evaluation import adaptation_curve

ENGINES = [engines.Loop(), engines.Vmap(), engines.Vmap(chunk_size=1)]
POLICIES = ("transductive", "support", "frozen", "per_step")


def images(tasks: int = 2) -> Episode:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, 9, 2, 6, 6, generator=rng, dtype=torch.float64)
    y = torch.arange(3).repeat(3).expand(tasks, -1)
    return Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))


def with_policy(policy: Any, steps: int = 2) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3)).double()
    model(torch.randn(8, 2, 6, 6, dtype=torch.float64) * 2 + 1)
    return nets.with_batchnorm(model, policy, steps=steps)


def gradient(model: nn.Module, recipe: Recipe, episode: Episode, engine: Any = None) -> Tensor:
    model.zero_grad()
    meta_backward(model, recipe, episode, F.cross_entropy, engine=engine)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in grads])


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_policy_gives_the_same_everywhere_and_writes_nothing(policy: str, engine: Any) -> None:
    model, episode = with_policy(policy), images()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    buffers = {name: t.clone() for name, t in model.named_buffers()}
    exact = gradient(model, recipes.maml(2, 0.3), episode, engines.Loop())
    for order in ("exact", "checkpointed"):
        assert (
            distance(gradient(model, recipes.maml(2, 0.3, differentiation=order), episode, engine), exact)
            <= 1e-12
        )
    recipe, metrics = recipes.maml(2, 0.3), {"loss": Metric(F.cross_entropy, higher_is_better=False)}
    last = evaluate(model, recipe, episode, F.cross_entropy, engine=engine)
    outcome = meta_backward(model, recipe, episode, F.cross_entropy, engine=engine)
    curve = adaptation_curve(model, recipe, episode, F.cross_entropy, metrics=metrics, engine=engine)
    for values in (last.values, curve[-1]["loss"].values):
        torch.testing.assert_close(values, outcome.losses, rtol=1e-12, atol=0)
    assert len(curve) == 3
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(torch.equal(buffers[name], t) for name, t in model.named_buffers())
    assert all(len(module._forward_pre_hooks) == 0 for module in model.modules())


@pytest.mark.parametrize("policy", POLICIES)
def test_whether_a_query_example_sees_the_others(policy: str) -> None:
    model, one = with_policy(policy), images()[0]
    fast = recipes.maml(2, 0.3).adapter(model, one.support, F.cross_entropy)
    together = functional_call(model, fast, (one.query.x,))
    alone = torch.cat([functional_call(model, fast, (x[None],)) for x in one.query.x])
    assert torch.allclose(together, alone, rtol=1e-10) == (policy in ("support", "frozen"))


def test_support_statistics_are_those_of_the_adapted_support_pass() -> None:
    model, one = with_policy("support"), images()[0]
    adapt = recipes.maml(2, 0.3).adapter
    fast = adapt(model, one.support, F.cross_entropy)
    own = {name: p for name, p in fast.items() if "support_" not in name}
    first = F.conv2d(one.support.x, own["0.weight"], own["0.bias"])
    torch.testing.assert_close(fast["1.support_mean"], first.mean((0, 2, 3)))
    torch.testing.assert_close(fast["1.support_var"], first.var((0, 2, 3), unbiased=False))
    # With them, the support set itself is answered as in the inner loop, with its own statistics.
    inner = functional_call(model, own, (one.support.x,))
    torch.testing.assert_close(functional_call(model, fast, (one.support.x,)), inner)
    again = adapt(model, one.support, F.cross_entropy, params=fast)  # as a start they are not taken over
    fresh = adapt(model, one.support, F.cross_entropy, params=own)
    assert all(torch.equal(again[name], fresh[name]) for name in fresh) and again.keys() == fresh.keys()


def test_support_statistics_after_every_adapter() -> None:
    episode, model = images(), nets.conv4(3, channels=2, hidden=4, size=16, batchnorm="support").double()
    wide = episode.map(lambda t: F.interpolate(t[0], 16).expand(2, -1, -1, -1, -1) if t.dim() == 5 else t)
    chain = adapters.Chain(adapters.Prototype(), adapters.Gradient(1, 0.1))
    for adapter in (adapters.Shared(), adapters.Prototype(), chain):
        one = wide[0]
        fast = adapter(model, one.support, F.cross_entropy)
        assert sum(name.endswith("support_mean") for name in fast) == 4
        loop, vmapped = (gradient(model, Recipe(adapter), wide, e) for e in ENGINES[:2])
        assert distance(vmapped, loop) <= 1e-12


def test_a_norm_in_two_places_has_no_single_mean() -> None:
    norm = nets.SupportBatchNorm(3)
    model = nn.Sequential(nn.Linear(4, 3), norm, nn.Tanh(), norm)
    support = (torch.randn(6, 4), torch.arange(3).repeat(2))
    with pytest.raises(ValueError, match=r"'1' normalizes twice.*one module for each place"):
        adapters.Shared()(model, support, F.cross_entropy)
    assert not norm._forward_pre_hooks


@pytest.mark.parametrize("engine", ENGINES[:2], ids=repr)
def test_each_step_has_a_scale_of_its_own(engine: Any) -> None:
    model, episode = with_policy("per_step", steps=3), images()
    used = []
    for steps in range(4):
        gradient(model, recipes.maml(steps, 0.3, differentiation="first_order"), episode, engine)
        used.append([int(rows.any()) for rows in model[1].weight.grad])
    # To first order only the query pass, after K steps, has a gradient; row 3 serves later steps too.
    assert used == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    gradient(model, recipes.maml(2, 0.3), episode, engine)
    assert [int(rows.any()) for rows in model[1].weight.grad] == [1, 1, 1, 0]
    assert gradient(model, recipes.maml(5, 0.3), episode, engine).isfinite().all()
