"""`meta_backward`: dicts of named tasks, and what goes where in `.grad`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchjd
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchjd.autojac import mtl_backward

from metamtl import Batch, Episode, Recipe, adapters, aggregators, meta_backward, recipes

from .named_problem import LOSSES, by_hand, episodes, net, targets


def assert_grad(model: nn.Module, expected: Callable[[str], Tensor]) -> None:
    for name, param in model.named_parameters():
        assert param.grad is not None
        torch.testing.assert_close(param.grad, expected(name), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shared_input", [True, False])
def test_rows_are_for_what_all_share_and_heads_get_their_plain_gradient(shared_input: bool) -> None:
    model, data = net(), episodes(shared_input=shared_input)
    rows = by_hand(model, data)
    seen: list[Tensor] = []

    class Look(aggregators.Aggregator):
        def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
            seen.extend([losses, rows])
            return rows.mean(0)

    outcome = meta_backward(model, Recipe(adapters.Shared(), Look()), data, LOSSES)
    assert seen[1].shape == (3, sum(p.numel() for p in model.body.parameters()))
    assert outcome.tasks == ("case", "slant", "size")
    expected = torch.stack([LOSSES[t](model(e.query.x, t), e.query.y).detach() for t, e in data.items()])
    torch.testing.assert_close(outcome.losses, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=0)

    def gradient(name: str) -> Tensor:
        column = [row[name] for row in rows.values() if row[name] is not None]
        return torch.stack(column).mean(0) if name.startswith("body") else column[0]

    assert_grad(model, gradient)


@pytest.mark.parametrize("name", ["MGDA", "PCGrad", "IMTLG", "Sum"])
def test_equals_mtl_backward_of_torchjd(name: str) -> None:
    ours, theirs, data = net(), net(), episodes(shared_input=True)
    meta_backward(ours, Recipe(adapters.Shared(), getattr(aggregators, name)()), data, LOSSES)
    features = theirs.body(data["case"].query.x)
    losses = [LOSSES[task](theirs.heads[task](features), episode.query.y) for task, episode in data.items()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mtl_backward(losses, features=features)
        torchjd.autojac.jac_to_grad(list(theirs.body.parameters()), getattr(torchjd.aggregation, name)())
    expected = dict(theirs.named_parameters())
    assert_grad(ours, lambda n: expected[n].grad)


@pytest.mark.parametrize(("shared_input", "passes"), [(True, 1), (False, 3)])
def test_a_shared_input_passes_once_through_the_body(shared_input: bool, passes: int) -> None:
    model, calls = net(), []
    model.body.register_forward_hook(lambda *_: calls.append(1))
    meta_backward(model, recipes.joint(), episodes(shared_input=shared_input), LOSSES)
    assert len(calls) == passes


def test_equal_inputs_that_are_two_objects_do_not_count_as_shared() -> None:
    model, calls, data = net(), [], episodes(shared_input=True)
    data["size"] = Episode(None, Batch(data["size"].query.x.clone(), data["size"].query.y))
    expected = net()
    meta_backward(expected, recipes.joint(), episodes(shared_input=True), LOSSES)
    model.body.register_forward_hook(lambda *_: calls.append(1))
    meta_backward(model, recipes.joint(), data, LOSSES)
    assert len(calls) == 2
    assert_grad(model, lambda n: dict(expected.named_parameters())[n].grad)


def test_the_order_of_the_dict_does_not_matter_for_the_mean() -> None:
    first, second, data = net(), net(), episodes(shared_input=False)
    meta_backward(first, recipes.joint(), data, LOSSES)
    turned = {name: data[name] for name in ("size", "case", "slant")}
    outcome = meta_backward(second, recipes.joint(), turned, LOSSES)
    assert outcome.tasks == ("size", "case", "slant")
    assert_grad(second, lambda n: dict(first.named_parameters())[n].grad)


def test_named_tasks_accumulate_and_leave_everything_else() -> None:
    model, data = net(), episodes(shared_input=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        meta_backward(model, recipes.joint(), data, LOSSES)
    once = net()
    meta_backward(once, recipes.joint(), data, LOSSES)
    assert_grad(model, lambda n: 2 * dict(once.named_parameters())[n].grad)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_head_that_no_task_of_this_step_uses_gets_no_gradient() -> None:
    model, data = net(), episodes(shared_input=True)
    del data["size"]
    meta_backward(model, recipes.joint(), data, LOSSES)
    assert model.heads["size"].weight.grad is None and model.heads["case"].weight.grad is not None


def test_frozen_parameters_of_named_tasks_get_no_gradient() -> None:
    model, data = net(), episodes(shared_input=True)
    model.body[0].requires_grad_(False)
    meta_backward(model, recipes.joint(), data, LOSSES)
    assert model.body[0].weight.grad is None and model.body[2].weight.grad is not None


class TwoInputs(nn.Module):
    """One task reads text of two parts by position, the other an image by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 4)
        self.heads = nn.ModuleDict({"pairs": nn.Linear(4, 2), "one": nn.Linear(4, 1)})

    def forward(self, first: Tensor, second: Tensor | None = None, *, task: str) -> Tensor:
        return self.heads[task](self.mix(first if second is None else first * second).tanh())


def test_tasks_with_several_inputs() -> None:
    torch.manual_seed(0)
    model = TwoInputs().double()
    a, b, c = torch.randn(3, 6, 3, dtype=torch.float64)
    y, labels = torch.randn(6, 1, dtype=torch.float64), torch.arange(6) % 2
    data = {"pairs": Episode(None, Batch((a, b), labels)), "one": Episode(None, Batch({"first": c}, y))}
    meta_backward(model, recipes.joint(), data, {"pairs": F.cross_entropy, "one": F.mse_loss})
    losses = [F.cross_entropy(model(a, b, task="pairs"), labels), F.mse_loss(model(c, task="one"), y)]
    expected = torch.autograd.grad(sum(losses) / 2, list(model.parameters()))
    for param, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(param.grad, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adapts", [None, "body", "heads.slant"])
def test_a_named_task_with_a_support_set_is_adapted_and_the_others_are_not(adapts: str | None) -> None:
    model, data = net(), episodes(shared_input=True)
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(7, 4, generator=rng, dtype=torch.float64)
    support = Batch(x, targets("slant", 7, rng))
    data["slant"] = Episode(support, data["slant"].query)
    calls: list[int] = []
    model.body.register_forward_hook(lambda *_: calls.append(1))
    meta_backward(model, recipes.maml(2, 0.1, adapts=adapts), data, LOSSES)
    assert len(calls) == 1 + 2 + 1  # case and size together, two inner steps, slant's query

    phi = dict(model.named_parameters())
    names = [name for name in phi if name.startswith(adapts or ("body", "heads.slant"))]
    for _ in range(2):
        loss = F.mse_loss(functional_call(model, phi, (x, "slant")), support.y)
        gradients = torch.autograd.grad(loss, [phi[n] for n in names], create_graph=True)
        phi = {**phi, **{n: phi[n] - 0.1 * g for n, g in zip(names, gradients)}}
    query = data["slant"].query
    total = F.mse_loss(functional_call(model, phi, (query.x, "slant")), query.y)
    for task in ("case", "size"):
        total = total + LOSSES[task](model(data[task].query.x, task), data[task].query.y)
    found = dict(zip(dict(model.named_parameters()), torch.autograd.grad(total, list(model.parameters()))))
    assert_grad(model, lambda n: found[n] / 3)
