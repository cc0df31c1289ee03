"""`meta_backward`: dicts of named tasks, and what goes where in `.grad`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchjd
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchjd.autojac import mtl_backward

from metamtl import Batch, Episode, Recipe, adapters, aggregators, engines, meta_backward, nets, recipes
from metamtl.objectives import Adaptation

LOSSES: dict[str, Callable[..., Tensor]] = {"case": F.cross_entropy, "slant": F.mse_loss, "size": F.l1_loss}
OUTPUTS = {"case": 3, "slant": 1, "size": 2}


def net() -> nets.NamedHeads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        return nets.NamedHeads(body, 5, OUTPUTS).double()


def targets(task: str, examples: int, rng: torch.Generator) -> Tensor:
    if task == "case":
        return torch.randint(3, (examples,), generator=rng)
    return torch.randn(examples, OUTPUTS[task], generator=rng, dtype=torch.float64)


def episodes(*, shared_input: bool) -> dict[str, Episode]:
    rng = torch.Generator().manual_seed(1)
    one = torch.randn(8, 4, generator=rng, dtype=torch.float64)
    found = {}
    for examples, task in zip((8, 5, 11), LOSSES):
        x = one if shared_input else torch.randn(examples, 4, generator=rng, dtype=torch.float64)
        found[task] = Episode(None, Batch(x, targets(task, len(x), rng)))
    return found


def by_hand(model: nn.Module, data: dict[str, Episode]) -> dict[str, dict[str, Tensor | None]]:
    """Each task's gradient by plain autograd, by parameter."""
    names, params = zip(*model.named_parameters())
    found = {}
    for task, episode in data.items():
        loss = LOSSES[task](model(episode.query.x, task), episode.query.y)
        found[task] = dict(zip(names, torch.autograd.grad(loss, params, allow_unused=True)))
    return found


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
    assert outcome.tasks == ("case", "slant", "size") and outcome.gradient_evaluations == 3
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
    outcome = meta_backward(model, recipes.maml(2, 0.1, adapts=adapts), data, LOSSES)
    assert len(calls) == 1 + 2 + 1  # case and size together, two inner steps, slant's query
    assert outcome.gradient_evaluations == 1 + (2 * 2 + 1) + 1

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


def test_what_the_adapter_owns_is_learned_by_named_tasks_too() -> None:
    class Shift(adapters.Adapter):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.full((), 0.5, dtype=torch.float64))

        def forward(self, model, support, loss, *, params=None, task=None):  # type: ignore[no-untyped-def]
            return {name: param + self.by for name, param in (params or {}).items()}

    model, data, adapter = net(), episodes(shared_input=True), Shift()
    data["size"] = Episode(data["size"].query, data["size"].query)
    meta_backward(model, Recipe(adapter), data, LOSSES)
    moved = {name: param + adapter.by for name, param in model.named_parameters()}
    query = data["size"].query
    loss = F.l1_loss(functional_call(model, moved, (query.x, "size")), query.y)
    (expected,) = torch.autograd.grad(loss, adapter.by)
    torch.testing.assert_close(adapter.by.grad, expected / 3)


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_an_adapter_can_be_all_that_is_learned(engine: engines.Engine) -> None:
    """A frozen model, and learned parameters that are the adapter's own."""

    class Offset(adapters.Adapter):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.zeros(1))

        def forward(self, model, support, loss, *, params=None, task=None):  # type: ignore[no-untyped-def]
            params = dict(params or {})
            return {**params, "bias": params["bias"] + self.by}

    model, adapter, x = nn.Linear(1, 1).requires_grad_(False), Offset(), torch.randn(3, 4, 1)
    meta_backward(model, Recipe(adapter), Episode(None, Batch(x, x)), F.mse_loss, engine=engine)
    expected = 2 * (model(x) - x).mean()
    assert model.weight.grad is None
    torch.testing.assert_close(adapter.by.grad, expected.view(1))


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_parameters_that_the_answer_does_not_depend_on_get_zero(engine: engines.Engine) -> None:
    """The prototypes replace the head; the answer depends on the body alone."""
    model, x, y = nets.mlp(3, 4, 2), torch.randn(2, 4, 3), torch.arange(4).remainder(2).expand(2, -1)
    episode = Episode(Batch(x, y), Batch(x, y))
    outcome = meta_backward(model, recipes.protonet(), episode, F.cross_entropy, engine=engine)
    assert model.head.weight.grad is not None and not model.head.weight.grad.any()
    assert model.body[0].weight.grad.any() and outcome.losses.shape == (2,)


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_an_answer_that_depends_on_no_parameter_is_refused(engine: engines.Engine) -> None:
    model, x = nets.flatten_linear(3, 1), torch.randn(2, 4, 3)
    episode = Episode(Batch(x, x[..., :1]), Batch(x, x[..., :1]))
    with pytest.raises(ValueError, match=r"task 0.* depends on no trainable parameter"):
        meta_backward(model, Recipe(adapters.MeanPredictor()), episode, F.mse_loss, engine=engine)
    assert all(param.grad is None for param in model.parameters())


def test_the_objective_is_what_is_differentiated_and_the_query_loss_what_is_reported() -> None:
    def decay(task: Adaptation) -> Tensor:
        return 0.5 * sum(param.square().sum() for param in task.end.values())

    model, x = nets.mlp(2, 3, 1), torch.randn(2, 4, 2)
    episode = Episode(None, Batch(x, x[..., :1]))
    outcome = meta_backward(model, recipes.joint(objective=decay), episode, F.mse_loss)
    for param in model.parameters():
        torch.testing.assert_close(param.grad, param.detach())
    losses = torch.stack([F.mse_loss(model(one), one[:, :1]) for one in x]).detach()
    torch.testing.assert_close(outcome.losses, losses)
    assert not outcome.losses.requires_grad


def test_the_direction_of_the_aggregator_lands_in_each_parameter() -> None:
    class Count(aggregators.Aggregator):
        def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
            return torch.arange(rows.shape[1], dtype=rows.dtype)

    model, x = nets.mlp(2, 3, 1), torch.randn(2, 4, 2)
    recipe = Recipe(adapters.Shared(), Count())
    meta_backward(model, recipe, Episode(None, Batch(x, x[..., :1])), F.mse_loss)
    found = torch.cat([param.grad.flatten() for param in model.parameters()])
    assert found.tolist() == list(range(13))


def test_a_users_own_graph_and_optimizer_are_left_alone() -> None:
    """It stands where `loss.backward()` stood, and adds to what another loss left there."""
    model, x = nets.mlp(2, 3, 1), torch.randn(2, 4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    penalty = sum(param.square().sum() for param in model.parameters())
    episode: Any = Episode(Batch(x, x[..., :1]), Batch(x, x[..., :1]))
    meta_backward(model, recipes.maml(), episode, F.mse_loss)
    alone = [param.grad.clone() for param in model.parameters()]
    penalty.backward()
    for param, gradient in zip(model.parameters(), alone):
        torch.testing.assert_close(param.grad, gradient + 2 * param.detach())
    optimizer.step()


@pytest.mark.parametrize(("aggregator", "weight"), [(aggregators.Sum, 1.0), (aggregators.Mean, 1 / 3)])
def test_what_two_of_three_tasks_share_gets_their_weighted_gradients(
    aggregator: Callable[[], aggregators.Aggregator], weight: float
) -> None:
    """It is in no row, and receives the gradient of the weighted loss as every other parameter does."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pair = nn.Linear(4, 4), nn.Linear(4, 4)
            self.heads = nn.ModuleDict({task: nn.Linear(4, n) for task, n in OUTPUTS.items()})

        def forward(self, x: Tensor, task: Any) -> Any:
            if not isinstance(task, str):
                return {name: self(x, name) for name in task}
            features = self.body(x).tanh()
            return self.heads[task](features if task == "size" else self.pair(features))

    model, data = Partly().double(), episodes(shared_input=False)
    rows = by_hand(model, data)
    meta_backward(model, recipes.joint(aggregator=aggregator()), data, LOSSES)
    expected = weight * (rows["case"]["pair.weight"] + rows["slant"]["pair.weight"])
    torch.testing.assert_close(model.pair.weight.grad, expected, rtol=1e-11, atol=1e-13)
    total = weight * torch.stack([row["body.weight"] for row in rows.values()]).sum(0)
    torch.testing.assert_close(model.body.weight.grad, total, rtol=1e-11, atol=1e-13)


def test_a_parameter_without_axes_has_its_row_too():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.factor * x

    model = Scale()
    x = torch.arange(12.0).view(3, 4, 1)
    meta_backward(model, recipes.joint(), Episode(None, (x, 2 * x)), F.mse_loss)
    torch.testing.assert_close(model.factor.grad, -2 * x.square().mean())
