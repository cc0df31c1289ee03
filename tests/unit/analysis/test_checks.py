"""Checks of precision, and of functions that combine gradients."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, aggregators, analysis, recipes
from metamtl.analysis.two_tasks import CLOSED_FORMS


def small() -> Any:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    x, y = torch.randn(2, 6, 3), torch.randn(2, 6, 2)
    return model, recipes.maml(steps=2, lr=0.1), Episode(Batch(x, y), Batch(-x, y)), F.mse_loss


def test_precisions_of_a_benign_gradient() -> None:
    result = analysis.check_numerics(*small())
    assert list(result.cosines)[:3] == ["float32", "bfloat16", "float16"] and not result.noise
    assert result.errors["float32"] < 1e-5 < result.errors["float16"] < result.errors["bfloat16"] < 0.2
    assert all(cosine > 0.98 for cosine in result.cosines.values())
    json.dumps(result.as_dict())
    result.plot()


def test_noise_is_reported() -> None:
    """Targets near outputs of 1000: the residual is below the spacing of low-precision numbers."""
    model, _, episodes, _ = small()
    with torch.no_grad():
        model[2].bias += 1000.0
    query = Batch(episodes.query.x, model(episodes.query.x).detach() + 1e-3 * episodes.query.y)
    joint = (model, recipes.joint(), Episode(None, query), F.mse_loss)
    with pytest.warns(UserWarning, match="noise in some precisions"):
        result = analysis.check_numerics(*joint)
    assert "bfloat16" in result.noise and "float16" in result.noise and "float32" not in result.noise


def test_overflow_is_reported() -> None:
    model, _, episodes, _ = small()
    with pytest.warns(UserWarning, match="float16: FloatingPointError"):
        result = analysis.check_numerics(
            model,
            recipes.joint(),
            episodes,
            lambda o, y: (1e4 * (o - y)).square().mean(),
            precisions="float16",
        )
    assert list(result.failures) == ["float16"] and result.as_dict()["cosines"] == {"float16": None}


def test_numerics_of_named_tasks_and_loss_modules(named: SimpleNamespace) -> None:
    model, recipe, episodes, loss = named.args
    weighted = {**loss, "a": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]).double())}
    result = analysis.check_numerics(model, recipes.joint(layer="body"), episodes, weighted)
    assert not result.noise and model.heads["a"].weight.dtype == torch.float64
    assert weighted["a"].weight.dtype == torch.float64
    with pytest.raises(ValueError, match="'float8'"):
        analysis.check_numerics(*named.args, precisions=["float8"])
    with pytest.raises(ValueError, match="is zero"):
        analysis.check_numerics(model, recipe, episodes, {n: lambda o, y: (0 * o).sum() for n in loss})


J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]).double()
PINNED = {
    "Mean": [1, 1, 1],
    "Sum": [2, 2, 2],
    "MGDA": [0, 1, 1],
    "PCGrad": [0.584795, 3.801170, 3.801170],
    "UPGrad": [0.292398, 1.900585, 1.900585],
    "DualProj": [5 / 9, 10 / 9, 10 / 9],
    "IMTLG": [0.076697, 1, 1],
    "NashMTL": [0.076584, 0.998533, 0.998533],
    "ConFIG": [0.158809, 2.070607, 2.070607],
    "AlignedMTL": [0.213279, 0.967333, 0.967333],
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_for_two_tasks(name: str) -> None:
    torch.testing.assert_close(
        CLOSED_FORMS[name](J), torch.tensor(PINNED[name]).double(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "failed"),
    [
        ("Mean", {"non-conflicting"}),
        ("Sum", {"non-conflicting"}),
        ("UPGrad", set()),
        ("MGDA", {"row scale"}),
        ("PCGrad", {"permutation", "non-conflicting"}),
        ("DualProj", {"row scale"}),
        ("IMTLG", {"row scale"}),
        ("ConFIG", set()),
        ("AlignedMTL", {"row scale", "non-conflicting"}),
    ],
)
def test_known_aggregators(name: str, failed: set[str]) -> None:
    options = {"projector": exact()} if name in ("UPGrad", "DualProj") else {}
    report = analysis.check_aggregator(getattr(aggregators, name)(**options))
    assert report.closed_form == name and report.usable
    assert set(report.failed) == failed, report.checks


def test_a_regularized_projection_is_not_scale_invariant() -> None:
    report = analysis.check_aggregator(aggregators.UPGrad())
    assert report.closed_form == "UPGrad" and set(report.failed) == {"scale", "row scale"}
    assert "A(0.001 J) / 0.001 differs from A(J)" in str(report.checks["scale"])


def exact() -> Any:
    from torchjd.linalg import QuadprogProjector

    return QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12)


def writes(gradients: Tensor) -> Tensor:
    gradients[0] = 0
    return gradients.mean(0)


@pytest.mark.parametrize(
    ("fn", "failed"),
    [
        (writes, "input unchanged"),
        (lambda g: g.mean(1), "shape"),
        (lambda g: g.mean(0).float(), "shape"),
        (lambda g: 3, "shape"),
        (lambda g: g.mean(0) * torch.rand(()), "repeatable"),
        (lambda g: g.exp().mean(0), "finite"),
        (lambda g: (g / g.norm(dim=1, keepdim=True)).mean(0), "degenerate"),
        (lambda g: torch.linalg.solve(g @ g.T, g).sum(0), "degenerate"),
        (lambda g: g[0], "permutation"),
        (lambda g: g.mean(0).tanh(), "scale"),
        (lambda g: g.square().mean(0), "equal gradients"),
        (lambda g: -g.mean(0), "non-conflicting"),
    ],
)
def test_faulty_functions(fn: Any, failed: str) -> None:
    report = analysis.check_aggregator(fn)
    assert failed in report.failed and report.checks[failed]
    assert report.usable == (failed not in ("shape", "input unchanged", "repeatable", "finite"))


def test_state_is_not_carried_over() -> None:
    aggregator = aggregators.DWA(calls_per_epoch=1)
    before = {k: v for k, v in vars(aggregator).items() if not k.startswith("_")}
    report = analysis.check_aggregator(aggregator)
    assert report.usable and {k: v for k, v in vars(aggregator).items() if not k.startswith("_")} == before
    json.dumps(report.as_dict())
    report.plot()
    with pytest.raises(TypeError, match=r"Mean\(\)"):
        analysis.check_aggregator(aggregators.Mean)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a function of gradients"):
        analysis.check_aggregator("Mean")  # type: ignore[arg-type]
