"""`meta_backward`: which gradient each parameter receives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, aggregators, engines, meta_backward, nets, recipes
from metamtl.objectives import Adaptation

from .named_problem import LOSSES, OUTPUTS, by_hand, episodes, net


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
