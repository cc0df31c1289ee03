"""Options of update rules: learned ones, invalid ones, and the numbers that they have to be right for."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from metamtl import Batch, Episode, Recipe, adapters, engines, meta_backward, rules

from ..central_differences import check_gradient

RULES: dict[str, tuple[type[rules.Rule], dict[str, Any]]] = {
    "SGD, dampened": (rules.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "Adam": (rules.Adam, {}),
    "Adam, amsgrad": (rules.Adam, {"amsgrad": True, "betas": (0.5, 0.5), "weight_decay": 0.1}),
    "AdamW": (rules.AdamW, {}),
    "NAdam": (rules.NAdam, {}),
    "RAdam": (rules.RAdam, {"betas": (0.9, 0.99)}),
    "Adamax": (rules.Adamax, {}),
    "RMSprop": (rules.RMSprop, {}),
    "RMSprop, centered": (rules.RMSprop, {"centered": True, "momentum": 0.5}),
    "Adagrad": (rules.Adagrad, {"lr_decay": 0.2, "initial_accumulator_value": 0.1}),
    "Adadelta": (rules.Adadelta, {}),
}
LEARN = nn.Parameter(torch.tensor(0.5))
T, STEPS = 2, 6


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=RULES.values(), ids=RULES)
def chosen(request: pytest.FixtureRequest) -> tuple[type[rules.Rule], dict[str, Any]]:
    return request.param


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def data() -> Episode:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(T, 12, 3, generator=rng)
    y = torch.randn(T, 12, 2, generator=rng)
    return Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))


def error(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).detach().norm() / expected.detach().norm())


INVALID: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: rules.Adam(lr=0.1), TypeError, r"Adam has no option lr; .*betas, eps.* Gradient\(lr="),
    (lambda: rules.SGD(foreach=True, moment=0.9), TypeError, "no option foreach, moment; .*momentum, damp"),
    (lambda: rules.AdamW(decoupled_weight_decay=False), TypeError, "AdamW has no option decoupled_weight"),
    (lambda: rules.Adam(betas=(0.9, 1.5)), ValueError, "Adam: beta2=1.5 .* less than 1"),
    (lambda: rules.SGD(momentum=-1), ValueError, "SGD: momentum=-1 is out of range"),
    (
        lambda: rules.SGD(momentum=nn.Parameter(torch.tensor(-1.0))),
        ValueError,
        "momentum=-1 is out of range",
    ),
    (lambda: rules.RMSprop(eps=float("nan")), ValueError, "RMSprop: eps=nan"),
    (lambda: rules.Adadelta(rho=1.5), ValueError, "rho=1.5 .* at most 1"),
    (lambda: rules.SGD(nesterov=True), ValueError, "nesterov=True needs a momentum above 0"),
    (lambda: rules.SGD(momentum=0.9, dampening=0.1, nesterov=True), ValueError, "dampening=0"),
    (lambda: rules.SGD(momentum="0.9"), TypeError, "momentum='0.9' is a str; pass a number"),
    (lambda: rules.SGD(momentum=torch.ones(3)), ValueError, r"momentum has shape \[3\]"),
    (
        lambda: rules.Adagrad(lr_decay=torch.tensor(0.1, requires_grad=True)),
        TypeError,
        r"lr_decay is a tensor with requires_grad=True but not an nn.Parameter.*lr_decay=nn.Parameter",
    ),
    (lambda: adapters.Gradient(rule=torch.optim.Adam), TypeError, "is not an update rule"),
    (lambda: adapters.Gradient(rule=rules.Adam), TypeError, "is not an update rule"),
]


@pytest.mark.parametrize(("make", "kind", "words"), INVALID)
def test_invalid_options(make: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


def test_repr_shows_the_options() -> None:
    rule = rules.SGD(momentum=0.9, nesterov=True)
    assert repr(rule) == "SGD(momentum=0.9, nesterov=True)" and repr(rules.Descent()) == "Descent()"
    assert "rule=SGD(momentum=0.9" in repr(adapters.Gradient(rule=rule))
    learned = rules.Adam(betas=(nn.Parameter(torch.tensor(0.5)), 0.99))
    assert repr(learned) == "Adam(betas=(Parameter(0.5), 0.99))"
    constant = rules.SGD(momentum=torch.tensor(0.5))
    assert constant.momentum == 0.5 and not list(constant.parameters())


def test_copies_and_pickles_compute_the_same(chosen) -> None:
    make, options = chosen
    rule = make(**{**options, "weight_decay": nn.Parameter(torch.tensor(0.1))})
    params, gradients = {"w": torch.ones(3)}, {"w": torch.arange(3.0)}
    expected = rule.update(params, gradients, rule.init(params), {"w": 0.1}, torch.tensor(0))[0]["w"]
    for other in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        result = other.update(params, gradients, other.init(params), {"w": 0.1}, torch.tensor(0))[0]["w"]
        assert repr(other) == repr(rule) and torch.equal(result, expected)
        assert other.weight_decay is not rule.weight_decay


@pytest.mark.parametrize("present", [[], [0, 1, 2, 3], [1, 2, 4], [3]])
def test_a_parameter_without_a_gradient_is_skipped(chosen, present: list[int]) -> None:
    """As `torch.optim` skips a parameter whose `.grad` is None, its count of updates included."""
    make, options = chosen
    rule = make(**options)
    rng = torch.Generator().manual_seed(2)
    used, unused = (nn.Parameter(torch.randn(3, generator=rng)) for _ in range(2))
    optimizer = getattr(torch.optim, make.__name__)([used, unused], lr=0.05, **options)
    params = {"used": used.detach().clone(), "unused": unused.detach().clone()}
    opt_state = rule.init(params)
    for k in range(5):
        gradients = {"used": torch.randn(3, generator=rng)}
        if k in present:
            gradients["unused"] = torch.randn(3, generator=rng)
        used.grad, unused.grad = gradients["used"], gradients.get("unused")
        optimizer.step()
        before = opt_state["unused"]
        lr = dict.fromkeys(params, 0.05)
        params, opt_state = rule.update(params, gradients, opt_state, lr, torch.tensor(k))
        assert error(params["used"], used) <= 1e-12 and error(params["unused"], unused) <= 1e-12
        assert k in present or opt_state["unused"] is before


def test_descent_skips_a_parameter_without_a_gradient() -> None:
    rule, params = rules.Descent(), {"a": torch.ones(2), "b": torch.ones(2)}
    new, _ = rule.update(
        params, {"a": torch.ones(2)}, rule.init(params), {"a": 0.1, "b": 0.1}, torch.tensor(0)
    )
    assert new["b"] is params["b"] and torch.equal(new["a"], torch.full((2,), 0.9))


MAKES = list(dict.fromkeys(make for make, _ in RULES.values()))
NUMBERS: list[tuple[type[rules.Rule], dict[str, Any], str, float]] = [
    (rules.SGD, {}, "momentum", 0.9),
    (rules.SGD, {"nesterov": True}, "momentum", 0.5),
    (rules.SGD, {"momentum": 0.9}, "dampening", 0.3),
    *((make, {}, "weight_decay", 0.1) for make in MAKES),
    *((make, {}, "eps", 0.1) for make in MAKES if make is not rules.SGD),
    *(
        (make, {"weight_decay": 0.1}, beta, 0.8)
        for make in MAKES
        if make is not rules.RAdam and "betas" in inspect.signature(make.__init__).parameters
        for beta in ("beta1", "beta2")
    ),
    (rules.RAdam, {"weight_decay": 0.1}, "beta1", 0.8),
    (rules.RAdam, {"weight_decay": 0.1}, "beta2", 0.99),  # rectified from step 6
    (rules.Adam, {"amsgrad": True}, "beta2", 0.5),
    (rules.Adam, {}, "beta1", 0.0),
    (rules.NAdam, {}, "momentum_decay", 0.3),
    (rules.NAdam, {"decoupled_weight_decay": True}, "weight_decay", 0.3),
    (rules.RMSprop, {}, "alpha", 0.9),
    (rules.RMSprop, {"centered": True}, "alpha", 0.7),
    (rules.RMSprop, {}, "momentum", 0.5),
    (rules.Adagrad, {}, "lr_decay", 0.2),
    (rules.Adagrad, {}, "initial_accumulator_value", 0.3),
    (rules.Adadelta, {}, "rho", 0.7),
]
LEARNED = {
    f"{m.__name__} {name}={value} {options}": (m, options, name, value)
    for m, options, name, value in NUMBERS
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LEARNED.values(), ids=LEARNED)
def test_a_learned_option_has_the_gradient_of_finite_differences(case: Any) -> None:
    make, options, name, start = case
    option = nn.Parameter(torch.tensor(start))
    betas = {"beta1": (option, 0.95), "beta2": (0.8, option)}
    learned = {"betas": betas[name]} if name in betas else {name: option}
    adapter = adapters.Gradient(STEPS, 0.05, rule=make(**{**options, **learned}))
    assert dict(adapter.named_parameters()) == {f"rule.{name}": option}
    for engine in (engines.Loop(), engines.Vmap()):

        def objective(engine: engines.Engine = engine) -> Tensor:
            return meta_backward(
                network(), Recipe(adapter), data(), F.mse_loss, engine=engine
            ).losses.mean()

        option.grad = None
        objective()
        assert option.grad is not None and abs(float(option.grad)) > 1e-8
        check_gradient(objective, [option], option.grad.clone().view(1), directions=1, step=1e-6)


@pytest.mark.parametrize("order", ["checkpointed", "truncated", "first_order"])
def test_a_learned_option_in_other_orders(order: Any) -> None:
    """With a constant inner gradient only the rule itself is differentiated."""
    expected = None
    for engine in (engines.Loop(), engines.Vmap()):
        adapter = adapters.Gradient(
            STEPS, 0.05, differentiation=order, rule=rules.SGD(momentum=nn.Parameter(torch.tensor(0.9)))
        )
        meta_backward(network(), Recipe(adapter), data(), F.mse_loss, engine=engine)
        (option,) = adapter.parameters()
        assert option.grad is not None
        expected = option.grad if expected is None else expected
        assert error(option.grad, expected) <= 1e-10 and float(option.grad) != 0


COMPILED: dict[str, tuple[type[rules.Rule], dict[str, Any]]] = {
    "Descent": (rules.Descent, {}),
    "SGD": (rules.SGD, {"momentum": 0.9}),
    "SGD, learned": (rules.SGD, {"momentum": LEARN, "dampening": 0.3, "weight_decay": LEARN}),
    "Adam": (rules.Adam, {"amsgrad": True}),
    "AdamW, learned": (rules.AdamW, {"betas": (LEARN, LEARN)}),
    "NAdam": (rules.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    "RAdam": (rules.RAdam, {"betas": (0.9, 0.99), "weight_decay": LEARN}),
    "Adamax": (rules.Adamax, {}),
    "RMSprop": (rules.RMSprop, {"centered": True, "momentum": 0.5}),
    "Adagrad": (rules.Adagrad, {"lr_decay": 0.2}),
    "Adadelta": (rules.Adadelta, {"rho": LEARN}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED.values(), ids=COMPILED)
def test_compiles_as_one_graph(case: Any) -> None:
    """Forward and backward of two updates, batched over tasks, with everything compiled at once."""
    make, options = copy.deepcopy(case)
    rule = make(**options)
    rng, dtype = torch.Generator().manual_seed(0), torch.float32
    params = {"w": torch.randn(3, generator=rng, dtype=dtype)}
    targets = torch.randn(T, 3, generator=rng, dtype=dtype)
    lr = {"w": torch.tensor(0.1, dtype=dtype)}

    def outer(params: Any, rule_params: Any, target: Tensor, ks: Tensor) -> Tensor:
        def inner(params: dict[str, Tensor]) -> Tensor:
            return (params["w"].sin() - target).square().sum()

        opt_state = rule.init(params)
        for k in ks.unbind():
            args = (params, grad(inner)(params), opt_state, lr, k)
            params, opt_state = functional_call(rule, rule_params, args) if rule_params else rule(*args)
        return inner(params)

    values = {name: param.detach() for name, param in rule.named_parameters()}
    run = vmap(grad(outer, argnums=(0, 1)), in_dims=(None, None, 0, None))
    args = (params, values, targets, torch.arange(2))
    torch._dynamo.reset()
    result, expected = torch.compile(run, fullgraph=True, backend="eager")(*args), run(*args)
    for a, b in zip(tree_leaves(result), tree_leaves(expected)):
        assert bool(b.isfinite().all()) and torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert result[0]["w"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_a_dead_input(chosen, dtype: torch.dtype) -> None:
    """An input that is always 0 has a gradient of exactly 0; nothing may become NaN, nothing may move."""
    make, options = chosen
    rule, lr = make(**options), 1.0 if make is rules.Adadelta else 0.02

    def outer(weight: Tensor) -> Tensor:
        x = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.0, -1.0]], dtype=dtype)
        params, opt_state = {"w": weight}, rule.init({"w": weight})
        for k in range(3):
            gradients = grad(lambda params: (x @ params["w"] - 1).square().mean())(params)
            params, opt_state = rule.update(params, gradients, opt_state, {"w": lr}, torch.tensor(k))
        return params["w"]

    weight = torch.tensor([0.3, 0.7, -0.2], dtype=dtype, requires_grad=True)
    result = outer(weight)
    assert result.dtype == dtype and bool(result.isfinite().all())
    assert not bool((result == weight)[[0, 2]].any())
    decays = rule.decays
    assert decays or bool(result[1] == weight[1])
    (gradient,) = torch.autograd.grad(result.sum(), weight)
    assert bool(gradient.isfinite().all()) and (decays or float(gradient[1]) == 1.0)


def test_the_move_keeps_its_digits() -> None:
    """`p - lr * d` directly: a unit step from p and back would lose the digits of a small gradient."""
    for make, options in ((rules.SGD, {}), (rules.SGD, {"momentum": 0.9}), (rules.Descent, {})):
        rule = make(**options)
        params, gradients = ({"w": torch.full((1,), value, dtype=torch.float32)} for value in (1e-3, 1e-6))
        new, _ = rule.update(params, gradients, rule.init(params), {"w": 10.0}, torch.tensor(0))
        move = float(params["w"].double() - new["w"].double())
        expected = 10.0 * float(gradients["w"])
        assert abs(move - expected) <= 1e-5 * expected
