"""`unrolled`: an inner loop in somebody's own code, against adapters, higher and torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import adapters, rules, unrolled

from ..central_differences import check_gradient

STEPS = 3
RULES: dict[str, Callable[[], rules.Rule]] = {
    "descent": rules.Descent,
    "momentum": lambda: rules.SGD(momentum=0.9, weight_decay=0.01),
    "adam": lambda: rules.Adam(eps=1e-2),
}


def problem() -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, generator=rng).double(), torch.randn(20, 1, generator=rng).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential()
        model.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        model.head = nn.Linear(6, 1)
    return model.double(), (x[:8], y[:8]), (x[8:], y[8:])


def outer(model: nn.Module, fast: Any, support: Any, query: Any, **options: Any) -> list[Tensor]:
    """The gradient of the query loss after three steps."""
    for _ in range(STEPS):
        fast.step(F.mse_loss(fast(support[0]), support[1]), **options)
    model.zero_grad()
    F.mse_loss(fast(query[0]), query[1]).backward()
    return [param.grad.clone() for param in model.parameters() if param.grad is not None]


@pytest.mark.parametrize("adapts", [None, "head"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_it_computes_what_the_adapter_computes(name: str, first_order: bool, adapts: str | None) -> None:
    model, support, query = problem()
    rule = RULES[name]()
    found = outer(
        model, unrolled(model, rule, lr=0.1, adapts=adapts, first_order=first_order), support, query
    )
    way = adapters.FirstOrder() if first_order else adapters.Unrolled()
    adapt = adapters.Gradient(STEPS, 0.1, adapts, differentiation=way, rule=rule)
    params = adapt(model, support, F.mse_loss)
    model.zero_grad()
    F.mse_loss(torch.func.functional_call(model, params, (query[0],)), query[1]).backward()
    expected = [param.grad for param in model.parameters() if param.grad is not None]
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["descent", "momentum"])
def test_it_computes_what_higher_computes(name: str) -> None:
    higher = pytest.importorskip("higher")
    model, support, query = problem()
    found = outer(model, unrolled(model, RULES[name](), lr=0.1), support, query)
    options = {"momentum": 0.9, "weight_decay": 0.01} if name == "momentum" else {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    model.zero_grad()
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(STEPS):
            diffopt.step(F.mse_loss(fmodel(support[0]), support[1]))
        F.mse_loss(fmodel(query[0]), query[1]).backward()
    for ours, param in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, param.grad, rtol=1e-12, atol=1e-14)


def test_the_model_does_not_change_and_its_modules_have_the_current_parameters() -> None:
    model, support, _ = problem()
    before = {name: param.clone() for name, param in model.named_parameters()}
    fast = unrolled(model, lr=0.5)
    start = model.body(support[0])
    assert torch.equal(fast.body(support[0]), start)
    fast.step(F.mse_loss(fast.head(fast.body(support[0])), support[1]))
    assert not torch.equal(fast.body(support[0]), start) and torch.equal(model.body(support[0]), start)
    assert torch.equal(fast(support[0]), fast.head(fast.body(support[0])))
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
    with fast.substituted() as same:
        assert same is model and torch.equal(model.head.weight, fast.params["head.weight"])
    assert torch.equal(model.head.weight, before["head.weight"])


def test_a_parameter_that_the_loss_does_not_use_stays_as_torch_optim_leaves_it() -> None:
    model, support, _ = problem()
    rule = rules.SGD(momentum=0.9, weight_decay=0.1)
    fast = unrolled(model, rule, lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    losses = (lambda net: net.body(support[0]).sum(), lambda net: F.mse_loss(net(support[0]), support[1]))
    for loss in losses:
        fast.step(loss(fast))
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    for name, param in model.named_parameters():
        torch.testing.assert_close(fast.params[name], param, rtol=1e-12, atol=1e-14)


def test_a_callback_sees_the_gradients_and_its_result_is_used() -> None:
    model, support, query = problem()

    def halved(grads: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: grad / 2 for name, grad in grads.items()}

    found = outer(model, unrolled(model, lr=0.2), support, query, grad_callback=halved)
    expected = outer(model, unrolled(model, lr=0.1), support, query)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_step_size_can_be_learned_and_can_differ_by_prefix() -> None:
    model, support, query = problem()
    rate = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    with_rate = outer(model, unrolled(model, lr=rate), support, query)
    plain = outer(model, unrolled(model, lr=0.1), support, query)
    torch.testing.assert_close(with_rate, plain, rtol=1e-12, atol=1e-14)

    def objective() -> float:
        fast = unrolled(model, lr=rate.item())
        for _ in range(STEPS):
            fast.step(F.mse_loss(fast(support[0]), support[1]))
        return F.mse_loss(fast(query[0]), query[1]).item()

    assert rate.grad is not None
    check_gradient(objective, [rate], rate.grad.view(1), directions=1)
    fast = unrolled(model, lr={"": 0.1, "head": 0.0})
    fast.step(F.mse_loss(fast(support[0]), support[1]))
    assert torch.equal(fast.params["head.weight"], model.head.weight)
    assert not torch.equal(fast.params["body.0.weight"], model.body[0].weight)


def test_it_starts_from_other_parameters() -> None:
    model, support, _ = problem()
    start = {name: (2 * param).detach().requires_grad_() for name, param in model.named_parameters()}
    fast = unrolled(model, lr=0.1, params=start)
    fast.step(F.mse_loss(fast(support[0]), support[1]))
    fast(support[0]).sum().backward()
    assert all(param.grad is not None for param in start.values())
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: unrolled(m, lr=0.1, adapts="tail"), ValueError, "tail"),
        (lambda m, x: unrolled(m, lr={"head": 0.1}), ValueError, "body.0.weight"),
        (lambda m, x: unrolled(m, torch.optim.SGD(m.parameters()), lr=0.1), TypeError, "rules.of"),
        (lambda m, x: unrolled(m, lr=0.1, params={}), ValueError, "params lacks"),
        (lambda m, x: unrolled(m, lr={"": [0.1, 0.2]}), ValueError, "2 rates for 1 step"),
        (lambda m, x: unrolled(m, lr=0.1, first_order=True, differentiable=False), ValueError, "no effect"),
        (lambda m, x: unrolled(m, lr=0.1).step(m(x)), ValueError, r"shape \[8, 1\]"),
        (lambda m, x: unrolled(m, lr=0.1).step(3.0), ValueError, "not float"),
        (lambda m, x: unrolled(m, lr=0.1).step(m(x).sum()), ValueError, "with this object"),
        (lambda m, x: unrolled(m, lr=0.1).step(m(x).sum().detach()), ValueError, "detach"),
    ],
)
def test_what_cannot_work_is_rejected(call: Callable[..., Any], error: type[Exception], words: str) -> None:
    model, support, _ = problem()
    with pytest.raises(error, match=words):
        call(model, support[0])


def test_a_callback_that_returns_another_name_is_rejected() -> None:
    model, support, _ = problem()
    fast = unrolled(model, lr=0.1)
    with pytest.raises(ValueError, match="tail"):
        fast.step(fast(support[0]).sum(), grad_callback=lambda grads: {**grads, "tail": torch.ones(1)})


def test_every_step_can_have_its_own_step_size() -> None:
    model, support, query = problem()
    rates = [torch.tensor(rate, dtype=torch.float64, requires_grad=True) for rate in (0.1, 0.2, 0.3)]
    fast = unrolled(model, lr=1.0)
    for rate in rates:
        fast.step(F.mse_loss(fast(support[0]), support[1]), lr={"": 0.1, "head": rate})
    F.mse_loss(fast(query[0]), query[1]).backward()
    learned = adapters.LearnedRates(model, per="tensor", steps=STEPS).double()
    with torch.no_grad():
        for name, values in learned.rates.named_parameters():
            values.copy_(torch.stack(rates) if name.startswith("head") else torch.full_like(values, 0.1))
    expected = [param.grad.clone() for param in model.parameters()]
    found = outer(model, unrolled(model, lr=learned), support, query)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    by_step = learned.rates.head.weight.grad + learned.rates.head.bias.grad
    torch.testing.assert_close(torch.stack([rate.grad for rate in rates]), by_step, rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match=r"step 4 has no rate in LearnedRates\(steps=3\)"):
        fast.step(fast(support[0]).sum(), lr=learned)


def test_the_parameters_of_an_update_of_ones_own_are_used() -> None:
    model, support, query = problem()
    expected = outer(model, unrolled(model, lr=0.1), support, query)
    fast = unrolled(model, lr=0.1)
    for _ in range(STEPS):
        params = fast.params
        grads = torch.autograd.grad(
            F.mse_loss(fast(support[0]), support[1]), list(params.values()), create_graph=True
        )
        fast.params = {name: param - 0.1 * grad for (name, param), grad in zip(params.items(), grads)}
    model.zero_grad()
    F.mse_loss(fast(query[0]), query[1]).backward()
    found = [param.grad for param in model.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="params lacks"):
        fast.params = {}
    with pytest.raises(ValueError, match="tail"):
        fast.params = {**fast.params, "tail": torch.zeros(1)}


def test_without_differentiation_no_graph_remains_and_the_steps_are_those_of_torch_optim() -> None:
    model, support, _ = problem()
    fast = unrolled(model, rules.SGD(momentum=0.9), lr=0.1, adapts="head", differentiable=False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        fast.step(F.mse_loss(fast(support[0]), support[1]))
        assert all(fast.params[name].is_leaf for name in fast.names)
    loss = F.mse_loss(fast(support[0]), support[1])
    loss.backward()
    assert all(param.grad is None for param in model.parameters())
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.mse_loss(model(support[0]), support[1]).backward()
        optimizer.step()
    for name, param in model.named_parameters():
        torch.testing.assert_close(fast.params[name], param.detach(), rtol=1e-12, atol=1e-14, msg=name)


def test_parameters_that_an_adapter_returns_are_a_start_frozen_ones_included() -> None:
    model, support, _ = problem()
    model.body.requires_grad_(False)
    params = adapters.Gradient(2, 0.1)(model, support, F.mse_loss)
    fast = unrolled(model, lr=0.1, params={**params, "body.0.bias": torch.ones(6).double()})
    fast.step(F.mse_loss(fast(support[0]), support[1]))
    plain = {**params, "body.0.bias": torch.ones(6).double()}
    expected = torch.func.functional_call(model, plain, (support[0],))
    grads = torch.autograd.grad(F.mse_loss(expected, support[1]), params["head.weight"], create_graph=True)
    torch.testing.assert_close(
        fast.params["head.weight"], params["head.weight"] - 0.1 * grads[0], rtol=1e-12, atol=1e-14
    )
