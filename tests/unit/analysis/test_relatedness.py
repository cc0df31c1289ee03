"""The labeled matrix and the measures that follow from gradients."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metamtl import Estimate, analysis, recipes
from metamtl.analysis import Relatedness


def test_cosine_transfer_and_layers(batch: SimpleNamespace) -> None:
    grads = analysis.gradients(*batch.args(recipes.maml(steps=1, lr=0.1)))
    rows = grads.matrix()
    unit = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(analysis.cosine(grads).matrix, unit @ unit.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(analysis.gramian(grads).matrix, rows @ rows.T, rtol=1e-10, atol=1e-12)
    expected = 0.2 * (rows @ rows.T) / grads.losses
    torch.testing.assert_close(analysis.transfer(grads, lr=0.2).matrix, expected)
    by_layer = analysis.cosine_by_layer(grads)
    assert list(by_layer) == ["0", "2", "4"] and by_layer["4"].measure == "cosine of 4"
    total = sum(
        (r.matrix * torch.outer(grads.norms(layer), grads.norms(layer)) for layer, r in by_layer.items()),
        torch.zeros(4, 4),
    )
    torch.testing.assert_close(total, grads.gramian())


def test_mean_and_interval() -> None:
    matrices = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    mean = Relatedness.mean([Relatedness(m, ("a", "b", "c"), "cosine", error=0.1) for m in matrices])
    estimate = Estimate.of(matrices[:, 0, 2])
    assert mean["a", "c"] == pytest.approx(estimate.mean) and mean.n == 5 and mean.ci95 is not None
    assert float(mean.ci95[0, 2]) == pytest.approx(estimate.ci95)
    assert mean.error == pytest.approx(0.1 / 5**0.5)
    assert Relatedness.mean([mean]).ci95 is None
    with pytest.raises(ValueError, match="same tasks and measure"):
        Relatedness.mean([mean, Relatedness(matrices[0], ("a", "b", "d"), "cosine")])
    with pytest.raises(ValueError, match="at least one"):
        Relatedness.mean([])


def test_plot_json_and_history() -> None:
    from matplotlib.figure import Figure

    matrix = torch.tensor([[1.0, -0.5], [0.25, 1.0]])
    result, history = Relatedness(matrix, ("a", "b"), "cosine"), analysis.History()
    assert isinstance(result.plot(), Figure)
    data = json.loads(json.dumps(result.as_dict()))
    assert data["matrix"] == matrix.tolist() and data["kind"] == "Relatedness" and data["ci95"] is None
    history.add(0, result)
    history.add(5, Relatedness(matrix.T, ("a", "b"), "cosine"))
    assert history.series()["min"] == [-0.5, -0.5] and history.scalars()["conflicts"] == 0.5
    assert isinstance(history.plot(), Figure) and history.as_dict()["steps"] == [0, 5]
    with pytest.raises(ValueError, match="does not come after"):
        history.add(5, result)
    with pytest.raises(TypeError, match="one History for each kind"):
        history.add(6, analysis.Derivatives(matrix, ("a", "b"), ("a", "b")))
    with pytest.raises(TypeError, match="result of an analysis"):
        history.add(7, matrix)  # type: ignore[arg-type]
    assert torch.equal(result.symmetric(), torch.tensor([[1.0, -0.125], [-0.125, 1.0]]).double())


def test_tensorboard(tmp_path: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    result = Relatedness(torch.tensor([[1.0, -0.5], [0.25, 1.0]]), ("a", "b"), "cosine")
    with SummaryWriter(str(tmp_path)) as writer:
        result.log(writer, 3, figure=True)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("relatedness/mean")] == [3]
    assert events.Scalars("relatedness/min")[0].value == -0.5 and events.Tags()["images"] == ["relatedness"]


@pytest.mark.parametrize(
    ("matrix", "tasks", "error", "words"),
    [
        (torch.eye(3), ("a", "b"), ValueError, r"shape \[3, 3\], but there are 2 tasks"),
        (torch.ones(2), ("a", "b"), ValueError, r"pass \[2, 2\]"),
        (torch.eye(2) * torch.nan, ("a", "b"), ValueError, "'a', 'a'"),
        (torch.ones(1, 1), ("a",), ValueError, "at least two"),
        (torch.eye(2), ("a", "a"), ValueError, "different names"),
        ([[1.0]], ("a", "b"), TypeError, "pass a tensor"),
    ],
)
def test_bad_matrices(matrix: Any, tasks: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Relatedness(matrix, tasks, "cosine")


def test_one_task_is_not_compared(batch: SimpleNamespace) -> None:
    args = (batch.model, recipes.joint(), batch.episodes[:1], batch.loss)
    with pytest.raises(ValueError, match="at least two tasks"):
        analysis.cosine(analysis.gradients(*args))
    with pytest.raises(KeyError, match="no task 'z'"):
        _ = analysis.cosine(analysis.gradients(*batch.args(recipes.joint())))["z", "0"]
    with pytest.raises(ValueError, match="lr=0"):
        analysis.transfer(analysis.gradients(*args), lr=0)


@pytest.mark.parametrize("missing", ["matplotlib", "sklearn"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    result = Relatedness(torch.tensor([[1.0, -0.5], [0.25, 1.0]]), ("a", "b"), "cosine")
    with pytest.raises(ImportError, match=r"pip install 'metamtl\[analysis\]'"):
        result.plot() if missing == "matplotlib" else analysis.spectral_groups(result, groups=2)
    assert result.as_dict()["tasks"] == ["a", "b"]
