"""Rules for groups of parameters, optimizers that are taken over, Muon, clipping, rates by prefix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, meta_backward, rules

from ..central_differences import adapted_loss, check_gradient

T, STEPS = 2, 4


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5, bias=bias), nn.Tanh(), nn.Linear(5, 2, bias=bias))


def data() -> Episode:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(T, 12, 3, generator=rng)
    y = torch.randn(T, 12, 2, generator=rng)
    return Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def walk(model: nn.Module, optimizers: list[Any], steps: int, clip: Any = None) -> None:
    x, y = data()[0].support
    for _ in range(steps):
        model.zero_grad()
        F.mse_loss(model(x), y).backward()
        if clip is not None:
            clip(model.parameters())
        for optimizer in optimizers:
            optimizer.step()


def same(adapter: adapters.Adapter, model: nn.Module, end: nn.Module, tolerance: float = 1e-10) -> bool:
    fast = adapter(model, data()[0].support, F.mse_loss)
    return all(error(fast[name], param) <= tolerance for name, param in end.named_parameters())


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("Adam", {"betas": (0.8, 0.95), "amsgrad": True}),
    ("AdamW", {"weight_decay": 0.1}),
    ("NAdam", {}),
    ("RAdam", {"betas": (0.9, 0.99)}),
    ("Adamax", {}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.3}),
    ("Adadelta", {}),
    ("ASGD", {"lambd": 0.1}),
    ("Rprop", {"step_sizes": (1e-3, 0.06)}),
    ("Adafactor", {"weight_decay": 0.1}),
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_a_taken_over_optimizer_continues(name: str, options: dict[str, Any], before: int) -> None:
    model = network()
    groups = [
        {"params": [*model[0].parameters()], "lr": 0.05},
        {"params": [*model[2].parameters()], "lr": 0.01},
    ]
    optimizer = getattr(torch.optim, name)(groups, **options)
    walk(model, [optimizer], before)
    state = str(optimizer.state_dict())
    adapter = adapters.Gradient(STEPS, **rules.of(optimizer, model)._asdict())
    for engine in (engines.Loop(), engines.Vmap()):
        meta_backward(model, Recipe(adapter), data(), F.mse_loss, engine=engine)
    fast = adapter(model, data()[0].support, F.mse_loss)
    assert str(optimizer.state_dict()) == state
    walk(model, [optimizer], STEPS)
    assert all(error(fast[key], param) <= 1e-10 for key, param in model.named_parameters())


def test_what_cannot_be_taken_over() -> None:
    model = network()
    with pytest.raises(TypeError, match="no rule computes the steps of LBFGS; there are ASGD, Adadelta"):
        rules.of(torch.optim.LBFGS(model.parameters()), model)
    with pytest.raises(ValueError, match="maximize=True; negate the loss"):
        rules.of(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), model)
    with pytest.raises(ValueError, match=r"shape \[5, 3\] does not belong to Sequential"):
        rules.of(torch.optim.SGD(network().parameters(), lr=0.1), model)


@pytest.mark.parametrize("options", [{}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}], ids=str)
def test_muon_is_that_of_torch(options: dict[str, Any]) -> None:
    model, end = network(bias=False), network(bias=False)
    walk(end, [torch.optim.Muon(end.parameters(), lr=0.05, **options)], STEPS)
    assert same(adapters.Gradient(STEPS, 0.05, rule=rules.Muon(**options)), model, end)


def test_muon_with_another_rule_for_vectors() -> None:
    model, end = network(), network()
    muon = torch.optim.Muon([end[0].weight, end[2].weight], lr=0.05)
    adam = torch.optim.Adam([end[0].bias, end[2].bias], lr=0.05)
    walk(end, [muon, adam], STEPS)
    rule = rules.Groups({"0.weight": rules.Muon(), "2.weight": rules.Muon(), "": rules.Adam()})
    assert same(adapters.Gradient(STEPS, 0.05, rule=rule), model, end)
    with pytest.raises(ValueError, match="Muon is for matrices"):
        adapters.Gradient(1, 0.1, rule=rules.Muon())(model, data()[0].support, F.mse_loss)


def test_the_gradient_through_muon_is_that_of_central_differences() -> None:
    model = network(bias=False)
    adapter = adapters.Gradient(2, 0.05, rule=rules.Muon(precision=None))
    found = []
    for engine in (engines.Loop(), engines.Vmap()):
        model.zero_grad()
        meta_backward(model, Recipe(adapter), data(), F.mse_loss, engine=engine)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert error(*found) <= 1e-10
    check_gradient(lambda: adapted_loss(model, adapter, data()), list(model.parameters()), found[0])


CLIPS = {
    "max_norm": nn.utils.clip_grad_norm_,
    "max_value": nn.utils.clip_grad_value_,
}


@pytest.mark.parametrize(("name", "bound"), [("max_norm", 0.2), ("max_value", 0.05), ("max_norm", 100.0)])
def test_clipping_is_that_of_torch(name: str, bound: float) -> None:
    model, end = network(), network()
    sgd = torch.optim.SGD(end.parameters(), lr=0.1, momentum=0.9)
    walk(end, [sgd], STEPS, lambda params: CLIPS[name](params, bound))
    rule = rules.Clipped(rules.SGD(momentum=0.9), **{name: bound})
    assert same(adapters.Gradient(STEPS, 0.1, rule=rule), model, end)
    assert repr(rule) == f"Clipped(SGD(momentum=0.9), {name}={bound})"


def test_a_bound_is_needed() -> None:
    for bounds in ({}, {"max_norm": 1.0, "max_value": 1.0}, {"max_norm": 0.0}):
        with pytest.raises(ValueError, match="pass one of the two, above 0"):
            rules.Clipped(rules.Descent(), **bounds)


def test_rates_by_prefix() -> None:
    model, end = network(), network()
    groups = [
        {"params": end[0].parameters(), "lr": 0.1},
        {"params": [end[2].weight], "lr": 0.02},
        {"params": [end[2].bias], "lr": 0.3},
    ]
    walk(end, [torch.optim.SGD(groups)], 3)
    lr = {"": 0.1, "2": 0.02, "2.bias": (0.3, 0.3, 0.3)}
    assert same(adapters.Gradient(3, lr), model, end)
    assert not same(adapters.Gradient(3, {**lr, "2.bias": (0.3, 0.3, 0.2)}), model, end)
    with pytest.raises(
        ValueError, match=r"no step size for \['0.weight', '0.bias'\]; its prefixes are '2'"
    ):
        adapters.Gradient(1, {"2": 0.1})(model, data()[0].support, F.mse_loss)
    with pytest.raises(ValueError, match=r"step sizes for \['head'\]"):
        adapters.Gradient(1, {"": 0.1, "head": 0.1})(model, data()[0].support, F.mse_loss)
