"""What every architecture of sharing obeys. A new one joins by one row in `ROWS` of `net_rows.py`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from metamtl import nets
from metamtl.functional import forward

from .net_rows import (
    PRETRAINED,
    ROWS,
    TASKS,
    B,
    ask,
    build,
    each_body,
    each_row,
    gradients,
)

PRETRAINED[0].requires_grad_(False)

pytestmark = pytest.mark.usefixtures("own_random_numbers")


@each_body
@each_row
def test_one_pass_for_several_names_equals_a_pass_for_each(row: str, body: str) -> None:
    model, x = build(row, body)
    model.eval()
    every = ask(model, x, tuple(TASKS))
    assert {name: tuple(out.shape) for name, out in every.items()} == {
        name: (B, width) for name, width in TASKS.items()
    }
    some = ask(model, x, ("c", "a"))
    assert list(some) == ["c", "a"]
    for name in TASKS:
        assert torch.equal(ask(model, x, name), every[name])
        assert name == "b" or torch.equal(some[name], every[name])
    assert bool(every["a"].std() > 0)


@each_row
def test_without_a_name_all_tasks_answer(row: str) -> None:
    model, x = build(row)
    every, named = model(x), model(x, task=tuple(TASKS))
    assert list(every) == list(TASKS)
    assert all(torch.equal(every[name], named[name]) for name in TASKS)
    assert torch.equal(model(x, "b"), named["b"]) and list(model(x, ("c", "a"))) == ["c", "a"]


@each_row
def test_a_task_uses_what_is_its_own_and_what_it_shares(row: str) -> None:
    model, x = build(row)
    for name in TASKS:
        alone = gradients(model, ask(model, x, name).square().sum())
        together = gradients(model, ask(model, x, tuple(TASKS))[name].square().sum())
        for param, found in alone.items():
            assert (found is not None) == (name in ROWS[row].users(param)), (name, param)
            assert (found is None) == (together[param] is None)
            assert found is None or torch.equal(found, together[param])


@each_row
def test_every_parameter_is_used_by_a_name(row: str) -> None:
    model, x = build(row)
    names = model.known() if isinstance(model, nets.NamedTasks) else tuple(TASKS)
    unused = set(dict(model.named_parameters()))
    for name in names:
        found = gradients(model, ask(model, x, name).square().sum())
        unused -= {param for param, gradient in found.items() if gradient is not None and gradient.any()}
    assert not unused


@each_row
def test_twice_differentiable(row: str) -> None:
    model, x = build(row)
    params = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    used = [name for name in params if ROWS[row].users(name) & {"a", "b"}]

    def outputs(*values: Tensor) -> Tensor:
        found = forward(model, {**params, **dict(zip(used, values))}, x[:3], ("a", "b"))
        return torch.cat([out.flatten() for out in found.values()]).sin()

    assert torch.autograd.gradcheck(outputs, [params[name] for name in used], fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, [params[name] for name in used], fast_mode=True)


@each_row
def test_vmap_is_a_loop(row: str) -> None:
    model, x = build(row)
    params, xs = dict(model.named_parameters()), torch.stack([x, -x, 2 * x])

    def answer(x: Tensor) -> dict[str, Tensor]:
        return functional_call(model, params, (x,), {"task": ("a", "b")})

    found = vmap(answer)(xs)
    for name in ("a", "b"):
        expected = torch.stack([answer(x)[name] for x in xs])
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)


@each_row
def test_a_state_dict_makes_the_same_net(row: str) -> None:
    (model, x), (other, _) = build(row), build(row)
    assert not torch.equal(model.eval()(x, task="a"), other.eval()(x, task="a"))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x, task="a"), other(x, task="a"))


@each_row
def test_a_copy_is_the_same_and_apart(row: str) -> None:
    model, x = build(row)
    twin = copy.deepcopy(model)
    before = model(x)
    assert all(torch.equal(before[name], out) for name, out in twin(x).items())
    for param in twin.parameters():
        param.data.add_(1.0)
    assert all(torch.equal(before[name], out) for name, out in model(x).items())


@each_row
def test_eval_mode_draws_nothing(row: str) -> None:
    model, x = build(row)
    model.eval()
    before = model(x, task="a")
    if isinstance(model, nets.Branching):
        model.sample(torch.Generator().manual_seed(9))
    torch.manual_seed(1)
    assert torch.equal(before, model(x, task="a"))
