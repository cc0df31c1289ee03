"""What aggregators learn from outside of `forward`: in a training loop."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from metamtl import Batch, Episode, aggregators, meta_backward, nets, recipes


def problem() -> tuple[nets.NamedHeads, dict[str, Episode], dict[str, object]]:
    """One task can be learned; the targets of the other are noise, drawn anew for validation."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nets.named_heads(nets.mlp(4, 8, 1), {"line": 1, "noise": 1})
    x = torch.randn(40, 4, generator=rng)
    episodes = {
        "line": Episode(None, Batch(x, x.sum(1, keepdim=True) + torch.randn(40, 1, generator=rng))),
        "noise": Episode(None, Batch(x, 5 * torch.randn(40, 1, generator=rng))),
    }
    return model, episodes, {"line": F.mse_loss, "noise": F.mse_loss}


@pytest.mark.slow
def test_uncertainties_learn_with_the_models_optimizer() -> None:
    """After enough steps `s_t` is the log of each loss."""
    model, episodes, losses = problem()
    recipe = recipes.joint(aggregator=aggregators.UW(2))
    optimizer = torch.optim.Adam([*model.parameters(), *recipe.aggregator.parameters()], lr=2e-2)
    for _ in range(800):
        optimizer.zero_grad()
        outcome = meta_backward(model, recipe, episodes, losses)
        optimizer.step()
    learned = recipe.aggregator.inner.log_var.detach()
    assert learned[1] > learned[0] + 1
    torch.testing.assert_close(learned, outcome.losses.log(), rtol=0, atol=0.2)


@pytest.mark.slow
def test_auto_lambda_takes_weight_from_a_task_that_does_not_help() -> None:
    model, episodes, losses = problem()
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(200, 4, generator=rng)
    validation = {
        "line": Episode(None, Batch(x, x.sum(1, keepdim=True))),
        "noise": Episode(None, Batch(x, 5 * torch.randn(200, 1, generator=rng))),
    }
    weights = aggregators.AutoLambda(rate=1e-3)
    train = recipes.joint(aggregator=weights)
    judge = recipes.joint(aggregator=weights.look_ahead(primary=[0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        meta_backward(model, train, episodes, losses)
        optimizer.step()
        optimizer.zero_grad()
        meta_backward(model, judge, validation, losses)
    line, noise = weights.task_weights.tolist()
    assert line > 0.1 and line > 2 * noise


def test_the_weights_gradient_is_that_of_the_validation_loss_after_the_step() -> None:
    """`dL_val/dw_t = -a <grad L_val(theta'), g_t>`, against plain differences."""
    model, episodes, _ = problem()
    model.double()
    rows, a = [], 0.01
    body = list(model.body.parameters())
    x, y = (part.double() for part in episodes["line"].query)
    for task, episode in episodes.items():
        found = torch.autograd.grad(F.mse_loss(model(x, task=task), episode.query.y.double()), body)
        rows.append(torch.cat([part.flatten() for part in found]))
    start = torch.cat([param.detach().flatten() for param in body])

    def validation(weights: torch.Tensor) -> torch.Tensor:
        theta = start - a * weights @ torch.stack(rows)
        torch.nn.utils.vector_to_parameters(theta, body)
        return F.mse_loss(model(x, task="line"), y)

    weights, step = torch.full((2,), 0.1, dtype=torch.float64), 1e-5
    differences = [
        (validation(weights + step * unit) - validation(weights - step * unit)).item() / (2 * step)
        for unit in torch.eye(2, dtype=torch.float64)
    ]
    after = torch.autograd.grad(validation(weights), body)
    auto = aggregators.AutoLambda(rate=a)
    auto(torch.ones(2).double(), torch.stack(rows))
    auto.learn(torch.cat([part.flatten() for part in after]))
    moved = (auto.task_weights - 0.1).tolist()
    torch.testing.assert_close(torch.tensor(moved), -torch.tensor(differences), rtol=1e-5, atol=1e-9)


def test_famo_takes_the_next_losses_where_nobody_updates() -> None:
    rows = torch.eye(2, dtype=torch.float64)
    before, after = torch.tensor([1.0, 3.0]).double(), torch.tensor([0.5, 3.0]).double()
    told, untold = aggregators.FAMO(2), aggregators.FAMO(2)
    told(before, rows)
    told.update(after)
    untold(before, rows)
    assert torch.equal(told(after, rows), untold(after, rows))
