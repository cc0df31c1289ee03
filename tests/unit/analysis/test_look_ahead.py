"""Steps on one task: measured, predicted in first and second order, and by the linearized model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, analysis, recipes


def linear(recipe: Any) -> Any:
    """Arguments of a call whose objectives are quadratic, so that second-order formulas are exact."""
    x, y = torch.randn(4, 8, 3).double(), torch.randn(4, 8, 2).double()
    xq, yq = torch.randn(4, 6, 3).double(), torch.randn(4, 6, 2).double()
    return nn.Linear(3, 2).double(), recipe, Episode(Batch(x, y), Batch(xq, yq)), F.mse_loss


@pytest.mark.parametrize("recipe", [recipes.joint(), recipes.maml(steps=2, lr=0.1)], ids=["joint", "maml"])
def test_closed_form_on_quadratic_tasks(recipe: Any) -> None:
    args, lr = linear(recipe), 0.3
    grads = analysis.gradients(*args)
    affinity = analysis.look_ahead(*args, lr=lr, grads=grads)
    gramian, losses = grads.gramian(), grads.losses
    for j, name in enumerate(grads.tasks):
        second = analysis.mixed_second_derivatives(*args, of=name, grads=grads).matrix.diagonal()
        after = losses[j] - lr * gramian[:, j] + lr**2 / 2 * second
        torch.testing.assert_close(affinity.matrix[:, j], 1 - after / losses[j], rtol=1e-10, atol=1e-12)
    linearized = analysis.linearized(*args, lr=lr)
    torch.testing.assert_close(linearized.matrix, affinity.matrix, rtol=1e-10, atol=1e-12)


def test_first_and_second_order_against_finite_steps(batch: SimpleNamespace) -> None:
    """Halving the step divides the remainders by 4 and by 8."""
    args = batch.args(recipes.maml(steps=1, lr=0.2))
    grads = analysis.gradients(*args)
    losses, gramian = grads.losses, grads.gramian()
    columns = [
        analysis.mixed_second_derivatives(*args, of=t, grads=grads).matrix.diagonal() for t in grads.tasks
    ]
    hessians = torch.stack(columns, 1)
    remainders = []
    for lr in (2e-2, 1e-2):
        after = losses * (1 - analysis.look_ahead(*args, lr=lr, grads=grads).matrix)
        first = after - (losses - lr * gramian)
        remainders.append((first.norm(), (first - lr**2 / 2 * hessians).norm()))
    assert float(remainders[0][0] / remainders[1][0]) == pytest.approx(4, rel=0.1)
    assert float(remainders[0][1] / remainders[1][1]) == pytest.approx(8, rel=0.1)


def families(seed: int, size: int = 24) -> Any:
    """Eight classification tasks with teachers of different similarity, and a net that was not trained."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    x, teachers = torch.randn(8, size, 6).double(), torch.randn(2, 6, 3).double()
    mix = torch.linspace(-1, 1, 8).double()[:, None, None]
    y = (x @ (mix * teachers[0] + (1 - mix.abs()) * teachers[1])).argmax(-1)
    return body.double(), Episode(Batch(x, y), Batch(x.flip(1), y.flip(1))), F.cross_entropy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("recipe", [recipes.joint(), recipes.maml(steps=2, lr=0.1)], ids=["joint", "maml"])
def test_predictions_of_look_ahead(seed: int, recipe: Any) -> None:
    model, episodes, loss = families(seed)
    grads = analysis.gradients(model, recipe, episodes, loss)
    lr = 0.1
    affinity = analysis.look_ahead(model, recipe, episodes, loss, lr, grads=grads)
    assert float(affinity.matrix.abs().max()) > 0.005  # the step changes the losses noticeably
    assert spearmanr(analysis.transfer(grads, lr).pairs, affinity.pairs).statistic >= 0.9
    predicted = analysis.linearized(model, recipe, episodes, loss, lr, grads=grads)
    error = (predicted.matrix - affinity.matrix).norm() / affinity.matrix.norm()
    assert float(error) < 0.03  # of the change of the losses, not of the losses


def test_named_tasks(named: SimpleNamespace) -> None:
    grads = analysis.gradients(*named.args)
    small = analysis.look_ahead(*named.args, lr=1e-4)
    torch.testing.assert_close(small.matrix, analysis.transfer(grads, 1e-4).matrix, rtol=1e-2, atol=1e-7)
    linearized = analysis.linearized(*named.args, lr=1e-4)
    torch.testing.assert_close(small.matrix, linearized.matrix, rtol=1e-2, atol=1e-7)


def test_bad_input(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.joint())
    model, recipe, episodes, loss = args
    for lr in (0, -1.0, "x", float("nan")):
        with pytest.raises(ValueError, match="pass the learning rate"):
            analysis.look_ahead(*args, lr=lr)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass at least 2"):
        analysis.look_ahead(model, recipe, episodes[:1], loss, lr=0.1)
    with pytest.raises(ValueError, match="same episodes"):
        other = analysis.gradients(model, recipe, episodes[:3], loss)
        analysis.look_ahead(*args, lr=0.1, grads=other)
    with pytest.raises(ValueError, match="are zero"):
        analysis.look_ahead(model, recipe, episodes, lambda o, y: (0 * o).sum(), lr=0.1)
    with pytest.raises(ValueError, match="lower the learning rate"):
        analysis.look_ahead(model, recipe, episodes, lambda o, y: o.square().sum().exp(), lr=1e6)
