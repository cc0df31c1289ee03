"""Update rules: torch's optimizers step by step, and outer gradients through their state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, meta_backward, rules

from ..central_differences import adapted_loss, check_gradient

RULES: dict[str, tuple[type[rules.Rule], dict[str, Any]]] = {
    "SGD": (rules.SGD, {}),
    "SGD, decayed": (rules.SGD, {"weight_decay": 0.1}),
    "SGD, momentum": (rules.SGD, {"momentum": 0.9}),
    "SGD, dampened": (rules.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "SGD, dampened to nothing": (rules.SGD, {"momentum": 0.9, "dampening": 1.0}),
    "SGD, Nesterov": (rules.SGD, {"momentum": 0.9, "nesterov": True}),
    "Adam": (rules.Adam, {"betas": (0.8, 0.95)}),
    "Adam, decayed": (rules.Adam, {"weight_decay": 0.1}),
    "Adam, amsgrad": (rules.Adam, {"amsgrad": True, "betas": (0.5, 0.5)}),
    "Adam, decoupled": (rules.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "Adam, no averages": (rules.Adam, {"betas": (0.0, 0.0), "eps": 1e-2}),
    "AdamW": (rules.AdamW, {}),
    "AdamW, amsgrad": (rules.AdamW, {"amsgrad": True, "weight_decay": 0.3}),
    "NAdam": (rules.NAdam, {"momentum_decay": 0.1}),
    "NAdam, decayed": (rules.NAdam, {"weight_decay": 0.1}),
    "NAdam, decoupled": (rules.NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "RAdam": (rules.RAdam, {"betas": (0.9, 0.99)}),
    "RAdam, rectified late": (rules.RAdam, {"betas": (0.5, 0.999), "eps": 1e-3, "weight_decay": 0.1}),
    "RAdam, never rectified": (rules.RAdam, {"betas": (0.5, 0.5)}),
    "RAdam, decoupled": (rules.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "Adamax": (rules.Adamax, {}),
    "Adamax, decayed": (rules.Adamax, {"weight_decay": 0.1, "betas": (0.5, 0.6)}),
    "RMSprop": (rules.RMSprop, {"alpha": 0.9}),
    "RMSprop, decayed": (rules.RMSprop, {"weight_decay": 0.1, "momentum": 0.5}),
    "RMSprop, centered": (rules.RMSprop, {"centered": True, "momentum": 0.5}),
    "Adagrad": (rules.Adagrad, {"lr_decay": 0.2}),
    "Adagrad, begun": (rules.Adagrad, {"initial_accumulator_value": 0.3}),
    "Adagrad, decayed": (rules.Adagrad, {"weight_decay": 0.1}),
    "Adadelta": (rules.Adadelta, {}),
    "Adadelta, decayed": (rules.Adadelta, {"rho": 0.5, "eps": 1e-4, "weight_decay": 0.1}),
}
RULES |= {
    "ASGD": (rules.ASGD, {"lambd": 0.1}),
    "ASGD, decayed": (rules.ASGD, {"lambd": 0.3, "alpha": 0.5, "weight_decay": 0.1}),
    "Rprop": (rules.Rprop, {"etas": (0.4, 1.3), "step_sizes": (1e-3, 0.06)}),
    "Adafactor": (rules.Adafactor, {}),
    "Adafactor, decayed": (rules.Adafactor, {"weight_decay": 0.1, "d": 1.5, "eps": (1e-3, 1e-2)}),
}
T, STEPS = 2, 6


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """torch's own optimizers keep their counts in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=RULES.values(), ids=RULES)
def chosen(request: pytest.FixtureRequest) -> tuple[type[rules.Rule], dict[str, Any]]:
    return request.param


def torch_optimizer(make: type[rules.Rule]) -> Any:
    return getattr(torch.optim, make.__name__)


def network(activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), activation or nn.Tanh(), nn.Linear(5, 2))


def data() -> Episode:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(T, 12, 3, generator=rng)
    y = torch.randn(T, 12, 2, generator=rng)
    return Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))


def meta_gradient(model: nn.Module, adapter: adapters.Adapter, engine: Any = None) -> Tensor:
    model.zero_grad()
    meta_backward(model, Recipe(adapter), data(), F.mse_loss, engine=engine)
    return torch.cat([param.grad.flatten() for param in model.parameters()])


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def test_steps_are_those_of_torchs_optimizer(chosen) -> None:
    make, options = chosen
    model, (x, y) = network(), data()[0].support
    adapter = adapters.Gradient(STEPS, 0.05, rule=make(**options))
    stages = list(adapter.path(model, (x, y), F.mse_loss))
    optimizer = torch_optimizer(make)(model.parameters(), lr=0.05, **options)
    for stage in stages:
        for name, param in model.named_parameters():
            assert error(stage[name], param) <= 1e-12
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()


def test_rates_that_change_are_those_of_a_schedule(chosen) -> None:
    make, options = chosen
    rates = [0.1, 0.02, 0.05]
    model, (x, y) = network(), data()[0].support
    found = adapters.Gradient(3, rates, rule=make(**options))(model, (x, y), F.mse_loss)
    optimizer = torch_optimizer(make)(model.parameters(), lr=0.05, **options)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    assert all(error(found[name], param) <= 1e-12 for name, param in model.named_parameters())


@pytest.mark.slow
def test_the_gradient_is_that_of_central_differences(chosen) -> None:
    make, options = chosen
    model, episode = network(), data()
    adapter = adapters.Gradient(STEPS, 0.05, rule=make(**options))
    found = meta_gradient(model, adapter)
    check_gradient(lambda: adapted_loss(model, adapter, episode), list(model.parameters()), found)


@pytest.mark.slow
def test_engines_and_recomputation_agree(chosen) -> None:
    make, options = chosen
    exact = adapters.Gradient(STEPS, 0.05, rule=make(**options))
    expected = meta_gradient(network(), exact, engines.Loop())
    assert error(meta_gradient(network(), exact, engines.Vmap()), expected) <= 1e-10
    for segment, engine in ((1, engines.Vmap()), (4, engines.Vmap()), (4, engines.Loop())):
        again = adapters.Gradient(
            STEPS, 0.05, differentiation=adapters.Checkpointed(segment), rule=make(**options)
        )
        assert error(meta_gradient(network(), again, engine), expected) <= 1e-10


@pytest.mark.parametrize("order", ["truncated", "first_order"])
@pytest.mark.parametrize("rule", [rules.SGD(momentum=0.9), rules.Adam(), rules.NAdam()], ids=repr)
def test_engines_agree_in_other_orders(rule: rules.Rule, order: str) -> None:
    adapter = adapters.Gradient(STEPS, 0.05, differentiation=order, rule=rule)
    expected = meta_gradient(network(), adapter, engines.Loop())
    assert error(meta_gradient(network(), adapter, engines.Vmap()), expected) <= 1e-10


def test_one_trace_of_a_step_serves_every_step(chosen) -> None:
    """Compiled code needs this: nothing is decided by the number of updates."""
    make, options = chosen
    rule = make(**options)
    params, gradients = ({"w": torch.randn(3, generator=torch.Generator().manual_seed(i))} for i in (0, 1))
    opt_state = rule.init(params)

    def step(params: Any, opt_state: Any, k: Tensor) -> Any:
        return rule.update(params, gradients, opt_state, {"w": 0.1}, k)

    traced = make_fx(step)(params, opt_state, torch.tensor(0))
    for k in range(STEPS):
        result, expected = (run(params, opt_state, torch.tensor(k)) for run in (traced, step))
        assert error(result[0]["w"], expected[0]["w"]) <= 1e-15
        params, opt_state = expected


def test_in_single_precision_a_rule_moves_as_in_double() -> None:
    """The corrections of the first steps, 1 - beta**k, would lose four digits in single precision."""
    model, (x, y) = network(), data()[0].support
    adapter = adapters.Gradient(2, 1.0, rule=rules.Adam(eps=1e-4))
    expected = adapter(model, (x, y), F.mse_loss)
    found = adapter(model.float(), (x.float(), y.float()), F.mse_loss)
    assert all(param.dtype == torch.float32 for param in found.values())
    assert all(error(found[name].double(), expected[name]) <= 2e-6 for name in found)


def test_a_parameter_without_axes() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x[..., :2]

    for make, options in RULES.values():
        adapter = adapters.Gradient(3, 0.05, rule=make(**options))
        model, support = Scale(), data().support

        def adapt(x: Tensor, y: Tensor, adapter: Any = adapter, model: Any = model) -> Tensor:
            return adapter(model, (x, y), F.mse_loss)["scale"]

        found = torch.vmap(adapt)(*support)
        assert error(found, torch.stack([adapt(x, y) for x, y in zip(*support)])) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_exactly_zero(chosen, engine: engines.Engine, dtype: torch.dtype) -> None:
    """Those of dead rectifiers: as if these were not there."""
    make, options = chosen

    def build(width: int) -> nn.Module:
        torch.manual_seed(0)
        live = network(nn.ReLU())
        net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        with torch.no_grad():
            net[0].weight[:5], net[0].bias[:5] = live[0].weight, live[0].bias
            net[0].bias[5:] = -100.0  # never active
            net[2].weight[:, :5], net[2].bias[:] = live[2].weight, live[2].bias
        return net.to(dtype)

    if "weight_decay" in options or make is rules.AdamW:
        options = {**options, "weight_decay": 0.0}
    with_dead, without = build(8), build(5)
    adapter = adapters.Gradient(4, 0.05, rule=make(**options))
    for net in (with_dead, without):
        episode = data().map(lambda tensor: tensor.to(dtype))
        meta_backward(net, Recipe(adapter), episode, F.mse_loss, engine=engine)
    assert all(param.grad.isfinite().all() for param in with_dead.parameters())
    if make is rules.Adafactor:  # its averages are over rows and columns, those of dead units included
        return
    found, expected = with_dead[0].weight.grad[:5], without[0].weight.grad
    assert error(found, expected) <= (1e-10 if dtype == torch.float64 else 1e-4)
    assert with_dead[0].weight.grad[5:].abs().max() == 0


def test_a_decay_of_weights_is_differentiated_in_first_order_too() -> None:
    """`p - lr * decay * p` in every step, the gradient of the loss being a constant."""
    plain = adapters.Gradient(3, 0.05, differentiation="first_order")
    decayed = adapters.Gradient(3, 0.05, differentiation="first_order", rule=rules.SGD(weight_decay=0.1))
    model, (x, y) = network(), data()[0].support
    for adapter, factor in ((plain, 1.0), (decayed, (1 - 0.05 * 0.1) ** 3)):
        fast = adapter(model, (x, y), F.mse_loss)
        (found,) = torch.autograd.grad(fast["0.bias"].sum(), model[0].bias)
        assert torch.allclose(found, torch.full_like(found, factor), rtol=1e-14)
