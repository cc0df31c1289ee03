"""Taylor predictions, the descent lemma, and indicators of generalization."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, analysis, meta_backward, recipes


def quadratic() -> Any:
    x, y = torch.randn(3, 8, 3).double(), torch.randn(3, 8, 1).double()
    return nn.Linear(3, 1, bias=False).double(), recipes.joint(), Episode(None, Batch(x, y)), F.mse_loss


def test_closed_form_on_a_quadratic() -> None:
    args = quadratic()
    x = args[2].query.x.reshape(-1, 3)
    values = torch.linalg.eigvalsh(2 * x.T @ x / len(x))
    step = analysis.descent(*args, lr=0.1)
    assert step.second == pytest.approx(step.actual, rel=1e-10)
    assert step.curvature == pytest.approx(step.first / 0.1 / step.gradient_norm**2 * step.curvature)
    assert step.largest == pytest.approx(float(values[-1]), rel=1e-10)
    assert float(values[0]) <= step.curvature <= step.smoothness <= float(values[-1]) * (1 + 1e-12)
    assert step.max_lr == pytest.approx(2 / float(values[-1]), rel=1e-10)
    assert step.step_norm == pytest.approx(0.1 * step.gradient_norm)


def test_predictions_approach_the_measurement(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.maml(steps=1, lr=0.1))
    steps = [analysis.descent(*args, lr=lr, iterations=3) for lr in (2e-2, 1e-2)]
    first = [abs(step.first - step.actual) for step in steps]
    second = [abs(step.second - step.actual) for step in steps]
    assert first[0] / first[1] == pytest.approx(4, rel=0.1)
    assert second[0] / second[1] == pytest.approx(8, rel=0.1)
    json.dumps(steps[0].as_dict())
    steps[0].plot()


def test_the_warning_tells_which_learning_rates_decrease_the_loss() -> None:
    model, recipe, episodes, loss = args = quadratic()
    limit = analysis.descent(*args, lr=1e-3).max_lr
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert analysis.descent(*args, lr=0.99 * limit).actual > 0
    with pytest.warns(UserWarning, match="descent lemma"):
        assert analysis.descent(*args, lr=1.01 * limit).max_lr == pytest.approx(limit)
    # Along the eigenvector of the largest eigenvalue, the limit is sharp.
    x = episodes.query.x.reshape(-1, 3)
    _, vectors = torch.linalg.eigh(x.T @ x)
    with torch.no_grad():
        y = x @ (model.weight[0] + vectors[:, -1])
    sharp = Episode(None, Batch(episodes.query.x, y.reshape(3, 8, 1)))
    with pytest.warns(UserWarning, match="descent lemma"):
        assert analysis.descent(model, recipe, sharp, loss, lr=1.01 * limit).actual < 0


def test_a_step_of_any_optimizer(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.maml(steps=1, lr=0.1))
    model = batch.model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    outcome = meta_backward(*args)
    optimizer.step()
    step = analysis.descent(*args, lr=1e-4, before=before)
    assert step.before == pytest.approx(outcome.loss) and step.actual > 0
    assert step.first == pytest.approx(step.actual, rel=0.05)
    assert step.second == pytest.approx(step.actual, rel=1e-3)
    assert step.step_norm == pytest.approx(1e-4 * 71**0.5, rel=1e-3)
    now = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"clone\(\)"):
        analysis.descent(*args, lr=1e-4, before=now)
    with pytest.raises(ValueError, match="no trainable parameter"):
        analysis.descent(*args, lr=1e-4, before={"z": torch.ones(1)})


def test_descent_of_named_tasks(named: SimpleNamespace) -> None:
    step = analysis.descent(*named.args, lr=1e-2, iterations=5)
    assert step.second == pytest.approx(step.actual, rel=1e-2)


def test_no_step(batch: SimpleNamespace) -> None:
    model, recipe, episodes, _ = batch.args(recipes.joint())
    with pytest.raises(ValueError, match="stationary point"):
        analysis.descent(model, recipe, episodes, lambda o, y: (0 * o).sum(), lr=0.1)
    with pytest.raises(ValueError, match="differentiation='exact'"):
        analysis.descent(model, recipes.fomaml(), episodes, batch.loss, lr=0.1)


def test_generalization(batch: SimpleNamespace) -> None:
    model, recipe, episodes, loss = batch.args(recipes.maml(steps=1, lr=0.1))
    start = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    result = analysis.generalization(
        model, recipe, episodes[:2], episodes[2:], loss, start=start, iterations=71
    )
    assert result.gap == pytest.approx(result.test.mean - result.train.mean)
    assert result.distance == pytest.approx(result.parameter_norm)
    assert result.largest == pytest.approx(
        float(analysis.spectrum(model, recipe, episodes[:2], loss, 1, iterations=71).values[0])
    )
    slope = analysis.gradients(model, recipe, episodes[:2], loss).matrix().mean(0).norm()
    small = analysis.generalization(
        model, recipe, episodes[:2], episodes[2:], loss, radius=1e-6, iterations=2
    )
    assert small.sharpness / 1e-6 == pytest.approx(float(slope), rel=1e-4) and small.distance is None
    json.dumps(result.as_dict())
    result.plot()
    with pytest.raises(ValueError, match="radius=0"):
        analysis.generalization(model, recipe, episodes, episodes, loss, radius=0)
    with pytest.raises(ValueError, match="is zero"):
        analysis.generalization(model, recipe, episodes, episodes, lambda o, y: (0 * o).sum())
