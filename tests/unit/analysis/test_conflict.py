"""Conflict by layer, branches, and negative transfer."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Estimate, analysis, meta_backward, nets, recipes
from metamtl.analysis import Conflict


def test_conflict_by_layer(batch: SimpleNamespace) -> None:
    grads = analysis.gradients(*batch.args(recipes.maml(steps=1, lr=0.1)))
    result = analysis.conflict(grads)
    assert result.layers == ("0", "2", "4")
    for layer, cosines in zip(result.layers, result.cosines):
        torch.testing.assert_close(cosines, grads.cosines(layer))
    worst = min(result.layers, key=lambda layer: float(analysis.cosine(grads, layer).pairs.mean()))
    assert result.most_conflicting(1) == (worst,)
    assert float(result.angles[0, 0, 0]) == 0 and torch.equal(result.angles > 90, result.cosines < 0)
    mean = Conflict.mean([result, Conflict(result.tasks, result.layers, -result.cosines)])
    assert mean.n == 2 and float(mean.cosines.abs().max()) == 0
    history = analysis.History()
    history.add(0, result)
    history.add(1, mean)
    assert len(history.series()["cosine/0"]) == 2
    json.dumps(history.as_dict())
    result.plot()
    history.plot()


def planted() -> tuple[Any, Any]:
    """Two pairs of tasks: the first layer serves all, and the pairs need opposite outputs."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(4, 200, 4).double()
    y = x[..., :2] * torch.tensor([1.0, 1.0, -1.0, -1.0]).double()[:, None, None]
    return model, Episode(None, Batch(x, y))


def test_branches_of_planted_pairs() -> None:
    model, episodes = planted()
    grads = analysis.gradients(model, recipes.joint(), episodes, F.mse_loss)
    branches = analysis.conflict(grads).branches()
    assert branches.groups[-1] == (("0", "1"), ("2", "3"))
    assert branches.nodes == sorted(branches.nodes) and branches.split in branches.layers
    assert analysis.conflict(grads).branches(-1).split is None
    branches.plot()
    layers = [lambda i=i: nn.Linear([4, 8, 8][i], 8) for i in range(3)]
    tree = nets.Branching(layers, branches.nodes, features=8, outputs={name: 2 for name in "abcd"})
    assert [len(layer) for layer in tree.layers] == branches.nodes


def test_a_branch_never_merges_again() -> None:
    apart = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, -1.0], [0.5, -1.0, 1.0]])
    result = Conflict(("a", "b", "c"), ("first", "second"), torch.stack([apart, torch.ones(3, 3)]))
    assert result.branches().groups == ((("a", "c"), ("b",)), (("a", "c"), ("b",)))
    assert result.branches(0.6).nodes == [3, 3] and result.branches().split == "first"
    with pytest.raises(ValueError, match="from -1 to 1"):
        result.branches(2)
    with pytest.raises(ValueError, match="same tasks and layers"):
        Conflict.mean([result, Conflict(("a", "b", "d"), result.layers, result.cosines)])
    with pytest.raises(ValueError, match="same tasks and layers"):
        Conflict.mean([])


def test_conflict_needs_two_tasks_with_gradients(batch: SimpleNamespace) -> None:
    model, recipe, episodes, loss = batch.args(recipes.joint())
    with pytest.raises(ValueError, match="at least two"):
        analysis.conflict(analysis.gradients(model, recipe, episodes[:1], loss))
    with torch.no_grad():
        model[4].weight.zero_()
    with pytest.raises(ValueError, match="zero in layer '0'"):
        analysis.conflict(analysis.gradients(model, recipe, episodes, loss))


def test_negative_transfer() -> None:
    together = {"a": torch.tensor([0.7, 0.72, 0.71]), "b": torch.tensor([0.9, 0.7, 0.8])}
    alone = {"a": torch.tensor([0.8, 0.81, 0.83]), "b": torch.tensor([0.8, 0.8, 0.8])}
    first, second = ({k: Estimate.of(v) for k, v in d.items()} for d in (together, alone))
    result = analysis.negative_transfer(first, second, higher_is_better=True)
    assert result.losing == ("a",) and result.winning == ()
    assert result.gains["a"].mean == pytest.approx(float((together["a"] - alone["a"]).mean()))
    reverse = analysis.negative_transfer(first, second, {"a": False, "b": True})
    assert reverse.winning == ("a",) and reverse.losing == ()
    json.dumps(result.as_dict())
    result.plot()
    with pytest.raises(ValueError, match="same tasks"):
        analysis.negative_transfer(first, {"a": second["a"]}, True)
    with pytest.raises(ValueError, match="one value"):
        analysis.negative_transfer({"a": Estimate.of(torch.ones(1))}, {"a": second["a"]}, True)
    with pytest.raises(ValueError, match="add 'b'"):
        analysis.negative_transfer(first, second, {"a": True})


def test_a_task_that_loses_is_found_by_training() -> None:
    """Of three tasks, the one with opposite targets loses from joint training, the other two do not."""
    signs = torch.tensor([1.0, 1.0, -1.0]).double()[:, None, None]
    losses: dict[str, dict[str, list[float]]] = {"together": {}, "alone": {}}
    for seed in range(4):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(3, 40, 2, generator=rng).double()
        episodes = Episode(None, Batch(x, signs * x))
        for kind, parts in (("together", [slice(0, 3)]), ("alone", [slice(i, i + 1) for i in range(3)])):
            for part in parts:
                torch.manual_seed(seed)
                model = nn.Linear(2, 2).double()
                optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
                for _ in range(30):
                    optimizer.zero_grad()
                    outcome = meta_backward(model, recipes.joint(), episodes[part], F.mse_loss)
                    optimizer.step()
                for task, value in zip(range(3)[part], outcome.losses.tolist()):
                    losses[kind].setdefault(str(task), []).append(value)
    estimates = {k: {t: Estimate.of(torch.tensor(v)) for t, v in d.items()} for k, d in losses.items()}
    result = analysis.negative_transfer(estimates["together"], estimates["alone"], higher_is_better=False)
    assert set(result.losing) == {"0", "1", "2"}
    assert result.gains["2"].mean < 3 * result.gains["0"].mean < 0
