"""Learned step sizes: they move, and their gradient is exact in every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, meta_backward, recipes, rules

from ..central_differences import adapted_loss, check_gradient

T, STEPS = 3, 4
KINDS = [(per, steps) for per in ("model", "tensor", "element") for steps in (None, STEPS)]
Rates = adapters.LearnedRates


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body, model.head = nn.Sequential(nn.Linear(3, 6), nn.Tanh()), nn.Linear(6, 2)
    return model.double()


def data() -> Episode:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(T, 12, 3, generator=rng, dtype=torch.float64)
    y = torch.randn(T, 12, 2, generator=rng, dtype=torch.float64)
    return Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))


def varied(rates: Rates) -> Rates:
    """Every number another one, so that none can stand in for another."""
    with torch.no_grad():
        for rate in rates.parameters():
            rate.mul_(
                1 + torch.rand(rate.shape, generator=torch.Generator().manual_seed(1), dtype=rate.dtype)
            )
    return rates


def gradient(model: nn.Module, adapter: adapters.Adapter, engine: Any = None) -> Tensor:
    """To the model's parameters and to the rates, as one vector."""
    model.zero_grad()
    adapter.zero_grad()
    meta_backward(model, Recipe(adapter), data(), F.mse_loss, engine=engine)
    params = [*model.parameters(), *adapter.parameters()]
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in params]
    )


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("per", "steps"), KINDS)
def test_shapes_and_names(per: str, steps: int | None) -> None:
    model = network()
    found = {
        n: list(t.shape)
        for n, t in adapters.Gradient(STEPS, Rates(model, per=per, steps=steps)).state_dict().items()
    }
    first = [] if steps is None else [steps]
    if per == "model":
        assert found == {"lr.rates.rate": first}
    else:
        shapes = {n: list(p.shape) if per == "element" else [] for n, p in model.named_parameters()}
        assert found == {f"lr.rates.{name}": [*first, *shape] for name, shape in shapes.items()}


@pytest.mark.parametrize(("per", "steps"), KINDS)
@pytest.mark.parametrize("rule", [None, rules.SGD(momentum=0.9), rules.AdamW()], ids=repr)
def test_adaptation_is_that_of_steps_by_hand(per: str, steps: int | None, rule: Any) -> None:
    """With the rates of all but one step, and all but one tensor, at their place."""
    model, support = network(), data()[0].support
    rates = varied(Rates(model, 0.05, per, steps=steps))
    chosen = rules.Descent() if rule is None else rule
    params = dict(model.named_parameters())
    memory = chosen.init(params)
    for k in range(STEPS):
        loss = F.mse_loss(functional_call(model, params, (support.x,)), support.y)
        gradients = dict(zip(params, torch.autograd.grad(loss, list(params.values()))))
        of_step = {n: rates.rates.get_parameter("rate" if per == "model" else n) for n in params}
        of_step = {name: rate if steps is None else rate[k] for name, rate in of_step.items()}
        params, memory = chosen.update(params, gradients, memory, of_step, torch.tensor(k))
    found = adapters.Gradient(STEPS, rates, rule=rule)(model, support, F.mse_loss)
    assert all(error(found[name].detach(), params[name].detach()) <= 1e-12 for name in params)


@pytest.mark.parametrize(("per", "steps"), KINDS)
def test_the_gradient_is_that_of_central_differences(per: str, steps: int | None) -> None:
    model, episode = network(), data()
    adapter = adapters.Gradient(STEPS, varied(Rates(model, 0.05, per, steps=steps)))
    found = gradient(model, adapter)
    params = [*model.parameters(), *adapter.parameters()]
    check_gradient(lambda: adapted_loss(model, adapter, episode), params, found)


@pytest.mark.slow
@pytest.mark.parametrize(("per", "steps"), KINDS)
@pytest.mark.parametrize("rule", [None, rules.Adam()], ids=repr)
def test_engines_and_orders_agree(per: str, steps: int | None, rule: Any) -> None:
    model = network()

    def found(engine: engines.Engine, way: Any) -> Tensor:
        rates = varied(Rates(model, 0.05, per, steps=steps))
        return gradient(model, adapters.Gradient(STEPS, rates, differentiation=way, rule=rule), engine)

    exact = found(engines.Loop(), "exact")
    for engine in (engines.Loop(), engines.Vmap(), engines.Vmap(2)):
        assert error(found(engine, "exact"), exact) <= 1e-10
        assert error(found(engine, adapters.Checkpointed(3)), exact) <= 1e-10
        assert error(found(engine, adapters.Truncated(STEPS)), exact) <= 1e-10
    for order in ("first_order", "truncated"):
        assert error(found(engines.Vmap(), order), found(engines.Loop(), order)) <= 1e-10


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_first_order_is_minus_the_products_of_gradients(engine: engines.Engine) -> None:
    """`phi = theta - sum_k a_k g_k` with constant `g_k`: the rate of step k gets `-<g_k, g_query>`."""
    model, episode = network(), data()
    adapter = adapters.Gradient(
        STEPS, varied(Rates(model, 0.05, "model", steps=STEPS)), differentiation="first_order"
    )
    gradient(model, adapter, engine)
    expected = torch.zeros(STEPS, dtype=torch.float64)
    for task in range(T):
        one, steps = episode[task], []
        params = {name: param.detach() for name, param in model.named_parameters()}
        for k in range(STEPS + 1):
            params = {name: param.detach().requires_grad_() for name, param in params.items()}
            x, y = one.query if k == STEPS else one.support
            loss = F.mse_loss(functional_call(model, params, (x,)), y)
            steps.append(torch.autograd.grad(loss, list(params.values())))
            if k < STEPS:
                rate = adapter.lr.rates.rate[k].detach()
                params = {n: p - rate * g for (n, p), g in zip(params.items(), steps[-1])}
        products = [-sum((g * q).sum() for g, q in zip(step, steps[-1])) for step in steps[:-1]]
        expected += torch.stack(products) / T
    assert error(adapter.lr.rates.rate.grad, expected) <= 1e-12


@pytest.mark.parametrize("order", ["exact", "checkpointed", "truncated", "first_order"])
@pytest.mark.parametrize("make", [recipes.metasgd, recipes.lslr])
def test_training_moves_every_rate(make: Callable[..., Recipe], order: str) -> None:
    model = network()
    recipe = make(model, STEPS, 0.05, differentiation=order)
    optimizer = torch.optim.SGD([*model.parameters(), *recipe.adapter.parameters()], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        meta_backward(model, recipe, data(), F.mse_loss)
        optimizer.step()
    moved = torch.cat([(rate.detach() - 0.05).abs().flatten() for rate in recipe.adapter.parameters()])
    assert float(moved.min()) > 0 and float(moved.max()) > 1e-4


@pytest.mark.parametrize("segment", [1, 3])
@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_rates_rule_dropout_and_recomputation_together(engine: engines.Engine, segment: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 2)).double()

    def found(way: Any) -> Tensor:
        rates = varied(Rates(model, 0.05, "tensor", steps=STEPS))
        adapter = adapters.Gradient(STEPS, rates, differentiation=way, rule=rules.Adam())
        torch.manual_seed(3)
        return gradient(model, adapter, engine)

    assert error(found(adapters.Checkpointed(segment)), found("exact")) <= 1e-10


def test_rates_in_a_chain_and_for_a_part() -> None:
    model = network()
    rates = Rates(model, 0.1, steps=STEPS, adapts="head")
    assert [name for name, _ in rates.named_parameters()] == ["rates.head.weight", "rates.head.bias"]
    adapter = adapters.Chain(adapters.Shared(), adapters.Gradient(STEPS, rates, "head"))
    loop = gradient(model, adapter, engines.Loop())
    assert error(gradient(model, adapter), loop) <= 1e-10
    assert all(rate.grad.abs().min() > 0 for rate in rates.parameters())


def test_a_state_dict_brings_them_back() -> None:
    model = network()
    trained = recipes.metasgd(model, 2).adapter
    varied(trained.lr)
    new = recipes.metasgd(model, 2).adapter
    new.load_state_dict(trained.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), trained.parameters()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda net: Rates(net, per="layer"), "per='layer' is not one of 'model', 'tensor', 'element'"),
        (lambda net: Rates(net, steps=0), "steps=0: pass the number of inner steps, or None"),
        (lambda net: Rates(net, adapts="tail"), "adapts='tail' names no parameter"),
        (lambda net: adapters.Gradient(3, None), "lr=None: pass one number.*LearnedRates"),
        (lambda net: adapters.Gradient(2, nn.Parameter(torch.tensor(0.1))), "LearnedRates"),
        (lambda net: adapters.Gradient(2, "12"), "pass one number"),
    ],
)
def test_what_is_refused(make: Callable[[nn.Module], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(network())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda net: adapters.Gradient(3, Rates(net, steps=5)),
            r"LearnedRates\(steps=5\) for 3 inner steps",
        ),
        (
            lambda net: adapters.Gradient(3, Rates(net), "head"),
            "never used for .'body.0.bias', 'body.0.weight'",
        ),
        (lambda net: adapters.Gradient(3, Rates(net, adapts="head")), "have no rate for .'body.0.bias'"),
    ],
)
def test_rates_that_do_not_fit_are_refused(make: Callable[[nn.Module], Any], words: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=words):
        meta_backward(model, Recipe(make(model)), data(), F.mse_loss)
    with pytest.raises(ValueError, match=words):
        make(model)(model, data()[0].support, F.mse_loss)
    assert all(param.grad is None for param in model.parameters())
