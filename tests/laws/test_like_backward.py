"""Around a call, `meta_backward` behaves as `loss.backward()`: hooks, modes, losses that learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, aggregators, engines, evaluate, meta_backward, nets, recipes


class Net(nn.Module):
    """A smooth net."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


LOOP, VMAP = engines.Loop(), engines.Vmap()
both = pytest.mark.parametrize("engine", [LOOP, VMAP], ids=repr)


def episode(tasks: int = 2) -> Episode:
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(tasks, 6, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    return Episode(Batch(x[:, :3], y[:, :3]), Batch(x[:, 3:], y[:, 3:]))


def grads(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def assert_close(result: Any, reference: Any) -> None:
    ours, theirs = (torch.cat([t.flatten() for t in part]) for part in (result, reference))
    assert theirs.norm() > 1e-3
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-10


@both
def test_hooks_of_parameters_are_called_as_by_backward(engine: Any) -> None:
    model, recipe = Net().double(), recipes.maml(1, 0.2)
    meta_backward(model, recipe, episode(), F.mse_loss, engine=engine)
    expected = [gradient.clone() for gradient in grads(model)]
    model.zero_grad()
    calls: list[Tensor] = []
    after: list[Tensor] = []
    model.body.weight.register_hook(lambda gradient: calls.append(gradient.clone()))
    model.head.bias.register_hook(lambda gradient: 2 * gradient)
    model.body.weight.register_post_accumulate_grad_hook(lambda param: after.append(param.grad.clone()))
    meta_backward(model, recipe, episode(), F.mse_loss, engine=engine)
    assert len(calls) == len(after) == 1
    assert_close([calls[0], after[0]], [expected[0], expected[0]])
    assert_close([*grads(model)[:-1], 0.5 * grads(model)[-1]], expected)
    meta_backward(model, recipe, episode(), F.mse_loss, engine=engine)  # it accumulates
    assert_close([calls[1], after[1]], [expected[0], 2 * expected[0]])


@pytest.mark.parametrize("aggregator", [aggregators.Mean, aggregators.UPGrad])
def test_hooks_of_parameters_see_the_aggregated_gradient_of_named_tasks(aggregator: Any) -> None:
    model = nets.NamedHeads(nn.Linear(2, 3), 3, {"a": 2, "b": 2}).double()
    x, y = episode().query.x[0], episode().query.y[0]
    tasks = {"a": Episode(None, Batch(x, y)), "b": Episode(None, Batch(x, -y))}
    calls: list[Tensor] = []
    for param in model.parameters():
        param.register_hook(lambda gradient: calls.append(gradient.clone()))
    recipe = recipes.joint(aggregator=aggregator())
    meta_backward(model, recipe, tasks, dict.fromkeys("ab", F.mse_loss))
    expected = [p.grad for p in model.parameters()]
    assert len(calls) == len(expected)
    assert all(any(torch.equal(call, g) for call in calls) for g in expected if g is not None)


@pytest.mark.parametrize("engine", [LOOP, VMAP, engines.Auto(), None], ids=repr)
def test_inference_mode_is_an_error(engine: Any) -> None:
    model = Net().double()
    with torch.inference_mode(), pytest.raises((RuntimeError, ValueError), match="inference_mode"):
        meta_backward(model, recipes.maml(1, 0.2), episode(), F.mse_loss, engine=engine)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("engine", [LOOP, VMAP, engines.Auto()], ids=repr)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("make", [recipes.maml, recipes.fomaml, recipes.joint, recipes.imaml])
def test_evaluation_inside(context: Any, make: Any, engine: Any) -> None:
    model, recipe = Net().double(), make()
    expected = evaluate(model, recipe, episode(), F.mse_loss, engine=engine).mean
    with context():
        result = evaluate(model, recipe, episode(), F.mse_loss, engine=engine).mean
    assert result == pytest.approx(expected, rel=1e-10)


class Learned(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return self.scale * F.mse_loss(output, y)


@both
def test_parameters_of_a_loss_are_an_error(engine: Any) -> None:
    model, loss = Net().double(), Learned()
    with pytest.raises(ValueError, match=r"Learned .* parameters of its own \(scale\)"):
        meta_backward(model, recipes.maml(1, 0.2), episode(), loss, engine=engine)
    assert all(param.grad is None for param in model.parameters())
    meta_backward(model, recipes.maml(1, 0.2), episode(), loss.requires_grad_(False), engine=engine)


@both
@pytest.mark.parametrize(
    "loss",
    [
        lambda output, y: F.mse_loss(output.detach(), y),
        lambda output, y: F.mse_loss(output, y).detach(),
        lambda output, y: (output.argmax(-1) - y[..., 0]).square().mean(),
    ],
    ids=["output", "value", "argmax"],
)
@pytest.mark.parametrize("recipe", [recipes.joint(), recipes.fomaml(1, 0.2)], ids=["joint", "fomaml"])
def test_a_loss_that_detaches_is_an_error(recipe: Any, loss: Any, engine: Any) -> None:
    model = Net().double()
    with pytest.raises(ValueError, match=r"look for a detach\(\)"):
        meta_backward(model, recipe, episode(), loss, engine=engine)
    assert all(param.grad is None for param in model.parameters())
