"""The inner loop from inside, and the loss around it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, adapters, analysis, evaluate, recipes


def test_movement_and_losses(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.maml(steps=3, lr=0.2))
    report = analysis.adaptation(*args)
    assert report.layers == ("0", "2", "4") and report.distance.shape == (4, 4, 3)
    assert float(report.distance[0].abs().max()) == 0
    start = {n: p.detach() for n, p in batch.model.named_parameters()}
    fast = args[1].adapter(batch.model, batch.episodes[1].support, batch.loss)
    moved = torch.cat([(fast[n].detach() - p).flatten() for n, p in start.items() if n[0] == "2"])
    assert float(report.distance[-1, 1, 1]) == pytest.approx(float(moved.norm()))
    weights = torch.cat([p.flatten() for n, p in start.items() if n[0] == "2"])
    assert float(report.relative[-1, 1, 1]) == pytest.approx(float(moved.norm() / weights.norm()))
    assert float(report.query[-1].mean()) == pytest.approx(evaluate(*args).mean)
    assert bool((report.support[-1] < report.support[0]).all())
    json.dumps(report.as_dict())
    report.plot()


def test_alignment_is_what_the_meta_gradient_differentiates(batch: SimpleNamespace) -> None:
    report = analysis.adaptation(*batch.args(recipes.anil(steps=1, lr=0.1, adapts="4")))
    assert report.layers == ("4",)
    for t in range(4):
        one, rows = batch.episodes[t], []
        for part in (one.support, one.query):
            loss = batch.loss(batch.model(part.x), part.y)
            grads = torch.autograd.grad(loss, list(batch.model[4].parameters()))
            rows.append(torch.cat([g.flatten() for g in grads]))
        expected = torch.cosine_similarity(rows[0], rows[1], 0)
        assert float(report.alignment[t]) == pytest.approx(float(expected), rel=1e-10)
    same = Episode(batch.episodes.support, batch.episodes.support)
    aligned = analysis.adaptation(batch.model, recipes.maml(), same, batch.loss)
    torch.testing.assert_close(aligned.alignment, torch.ones(4).double())


def test_an_adapter_without_steps() -> None:
    model = nn.Sequential()
    model.body, model.head = nn.Linear(4, 6), nn.Linear(6, 3)
    x, y = torch.randn(2, 9, 4), torch.arange(3).repeat(3).expand(2, 9)
    args = (model, recipes.protonet(), Episode(Batch(x, y), Batch(x + 0.1, y)), F.cross_entropy)
    report = analysis.adaptation(*args)
    assert report.layers == ("head",) and report.distance.shape[0] == 2
    assert analysis.line(*args, points=3).query.shape == (2, 3)


def test_nothing_is_adapted(batch: SimpleNamespace, named: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="changes no parameter"):
        analysis.adaptation(*batch.args(recipes.joint()))
    with pytest.raises(ValueError, match="no support set"):
        analysis.adaptation(*named.args)


def test_line(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.maml(steps=2, lr=0.1))
    line, report = analysis.line(*args, points=5, span=(0.0, 1.0)), analysis.adaptation(*args)
    for values, expected in ((line.query, report.query), (line.support, report.support)):
        torch.testing.assert_close(values[:, 0], expected[0])
        torch.testing.assert_close(values[:, -1], expected[-1])
    half = batch.episodes[2]
    fast = args[1].adapter(batch.model, half.support, batch.loss)
    between = {n: (p + fast[n]) / 2 for n, p in batch.model.named_parameters()}
    loss = batch.loss(torch.func.functional_call(batch.model, between, (half.query.x,)), half.query.y)
    assert float(line.query[2, 2]) == pytest.approx(float(loss.detach()))
    line.plot()
    json.dumps(line.as_dict())
    for bad in ({"points": 1}, {"span": (1.0, 0.0)}):
        with pytest.raises(ValueError, match="at least 2 points"):
            analysis.line(*args, **bad)  # type: ignore[arg-type]


def test_surface_of_two_tasks(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.maml(steps=2, lr=0.1))
    surface = analysis.surface(*args, tasks=("1", "3"), points=3, span=(0.0, 1.0))
    assert surface.tasks == ("1", "3") and surface.points["1"] == (1.0, 0.0)
    adapter, episodes = args[1].adapter, batch.episodes
    first, other = (adapter(batch.model, episodes[t].support, batch.loss) for t in (1, 3))

    def mean_loss(params: dict[str, torch.Tensor]) -> float:
        ones = [episodes[t].query for t in (1, 3)]
        outputs = [torch.func.functional_call(batch.model, params, (q.x,)) for q in ones]
        return float(torch.stack([batch.loss(o, q.y) for o, q in zip(outputs, ones)]).detach().mean())

    assert float(surface.values[0, 0]) == pytest.approx(mean_loss(dict(batch.model.named_parameters())))
    assert float(surface.values[-1, 0]) == pytest.approx(mean_loss(first))
    x, y = surface.points["3"]
    exact = analysis.surface(*args, tasks=("1", "3"), points=2, span=(min(x, y), max(x, y)))
    i, j = (0, 1) if x < y else (1, 0)
    assert float(exact.values[i, j]) == pytest.approx(mean_loss(other))
    analysis.surface(*args, points=5).plot()
    json.dumps(surface.as_dict())


def test_surface_along_directions(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.maml())
    bias = {"4.bias": torch.ones(2).double()}
    surface = analysis.surface(*args, directions=[bias, {"0.bias": torch.ones(6).double()}], points=2)
    assert surface.tasks == ("0", "1", "2", "3")
    params = {n: p - 0.5 if n == "4.bias" else p for n, p in batch.model.named_parameters()}
    params["0.bias"] = params["0.bias"] + 1.5
    query = batch.episodes.query
    losses = [
        batch.loss(torch.func.functional_call(batch.model, params, (query.x[t],)), query.y[t])
        for t in range(4)
    ]
    assert float(surface.values[0, 1]) == pytest.approx(float(torch.stack(losses).detach().mean()))
    with pytest.raises(ValueError, match="not both"):
        analysis.surface(*args, directions=[bias])
    with pytest.raises(ValueError, match="two different tasks"):
        analysis.surface(*args, tasks=("1", "1"))
    one = Episode(*(Batch(b.x[[0, 0]], b.y[[0, 0]]) for b in (batch.episodes.support, query)))
    with pytest.raises(ValueError, match="span no plane"):
        analysis.surface(batch.model, recipes.maml(), one, batch.loss)


def test_frozen_parameters_and_learned_rates(batch: SimpleNamespace) -> None:
    batch.model[0].requires_grad_(False)
    rates = adapters.LearnedRates(batch.model, 0.1)
    recipe = recipes.maml(steps=2, lr=rates)
    report = analysis.adaptation(*batch.args(recipe))
    assert report.layers == ("2", "4")
    assert analysis.line(*batch.args(recipe), points=2).query.shape == (4, 2)
