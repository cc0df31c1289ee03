"""Directions of the aggregators on two matrices, from closed forms."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from metamtl import aggregators
from metamtl.aggregators import Aggregator

# Gramian [[18, -22], [-22, 38]]: the two conflict, with a cosine of -0.8412.
J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
LOSSES = torch.tensor([1.0, 2.0], dtype=torch.float64)


def exact() -> Any:
    from torchjd.linalg import QuadprogProjector

    return QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12)  # theirs regularises by 1e-4: 5e-4 off


def rows(first: float, second: float) -> list[float]:
    """The combination of the rows of J with these weights."""
    return [-4 * first + 6 * second, first + second, first + second]


def softmax(first: float, second: float) -> tuple[float, float]:
    total = exp(first) + exp(second)
    return exp(first) / total, exp(second) / total


PINNED: dict[str, tuple[Callable[[], Aggregator], list[float]]] = {
    "Mean": (aggregators.Mean, [1, 1, 1]),
    "Sum": (lambda: aggregators.Sum(), [2, 2, 2]),
    "Constant": (lambda: aggregators.Constant(weights=torch.tensor([1.0, 2.0])), [8, 3, 3]),
    "MGDA": (lambda: aggregators.MGDA(), rows(0.6, 0.4)),
    "PCGrad": (lambda: aggregators.PCGrad(), rows(20 / 9, 30 / 19)),
    "GradVac": (lambda: aggregators.GradVac(), rows(20 / 9, 30 / 19)),  # PCGrad, at its first call
    "UPGrad": (lambda: aggregators.UPGrad(projector=exact()), rows(10 / 9, 15 / 19)),
    "DualProj": (lambda: aggregators.DualProj(projector=exact()), rows(11 / 18, 1 / 2)),
    "IMTLG": (lambda: aggregators.IMTLG(), [0.07669683, 1, 1]),
    "CAGrad": (lambda: aggregators.CAGrad(c=0.5), [0.18350342, 1.20412415, 1.20412415]),
    "AlignedMTL": (lambda: aggregators.AlignedMTL(), [0.21327875, 0.96733298, 0.96733298]),
    "NashMTL": (lambda: aggregators.NashMTL(max_norm=0.0), [0.07658429, 0.99853264, 0.99853264]),
    "NashMTL, cut": (
        aggregators.NashMTL,
        [0.07658429 / sqrt(2), 0.99853264 / sqrt(2), 0.99853264 / sqrt(2)],
    ),
    "FairGrad": (lambda: aggregators.FairGrad(alpha=1.0), [0.07658429, 0.99853264, 0.99853264]),
    "ConFIG": (lambda: aggregators.ConFIG(), [0.15880898, 2.07060676, 2.07060676]),
    "ExcessMTL": (lambda: aggregators.ExcessMTL(), rows(*softmax(6, 8))),  # the rows' 1-norms
    "UW": (lambda: aggregators.UW(2), rows(1 / 2, 1 / 2)),
    "IMTLL": (lambda: aggregators.IMTLL(2), [2, 2, 2]),
    "GeometricMean": (lambda: aggregators.GeometricMean(), rows(sqrt(2) / 2, sqrt(2) / 4)),
    "STCH": (lambda: aggregators.STCH(mu=1.0), [weight / 2 for weight in rows(*softmax(0.5, 1.0))]),
    "COSMOS": (  # minus lambda times the gradient of cos(w, L), at L = (1, 2)
        lambda: aggregators.COSMOS(lambda_=1.0, weights=torch.tensor([1.0, 1.0])),
        rows(1 - 2 / (5 * sqrt(10)), 1 + 1 / (5 * sqrt(10))),
    ),
    "PBI": (  # L lies along the weights
        lambda: aggregators.PBI(theta=5.0, weights=torch.tensor([1.0, 2.0])),
        rows(1 / sqrt(5), 2 / sqrt(5)),
    ),
    "FAMO": (lambda: aggregators.FAMO(2), rows(2 / 3, 1 / 3)),
    "DWA": (lambda: aggregators.DWA(1), [2, 2, 2]),
    "GradNorm": (aggregators.GradNorm, [2, 2, 2]),
    "DBMTL": (aggregators.DBMTL, rows(1, sqrt(18 / 38))),
    "AdaTask": (aggregators.AdaTask, [0, 2, 2]),
    "AutoLambda": (lambda: aggregators.AutoLambda(rate=0.1), [0.2, 0.2, 0.2]),
    "LossAscent": (lambda: aggregators.LossAscent(rate=1.0), rows(*softmax(1, 2))),
    "RawLossAscent": (lambda: aggregators.RawLossAscent(rate=1.0), rows(1.5, 2.5)),
    "Rescaled": (lambda: aggregators.Rescaled(aggregators.Sum()), [1, 1, 1]),
}


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PINNED)
def test_first_direction(name: str) -> None:
    build, expected = PINNED[name]
    close(build()(LOSSES, J), expected)


def test_graddrop_keeps_one_sign_of_each_entry() -> None:
    kept = {round(float(aggregators.GradDrop(seed=seed)(LOSSES, J)[0]), 6) for seed in range(20)}
    assert kept == {-4.0, 6.0}
    close(aggregators.GradDrop()(LOSSES, J)[1:], [2, 2])


def test_robust_ones_leave_the_outlier_out() -> None:
    losses = torch.ones(4, dtype=torch.float64)
    many = torch.tensor([[1.0, 5.0], [2.0, 6.0], [2.5, 100.0], [900.0, 7.0]], dtype=torch.float64)
    close(aggregators.TrimmedMean(trim_number=1)(losses, many), [2.25, 6.5])
    line = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [100.0, 1.0], [3.5, 1.0]], dtype=torch.float64)
    close(aggregators.Krum(n_byzantine=1)(torch.ones(5), line), [1, 1])  # the two next to it are nearest


def test_imtlg_projects_equally_on_every_gradient() -> None:
    found = aggregators.IMTLG()(LOSSES, J)
    close(J @ found / J.norm(dim=1), [0.39909415, 0.39909415])


def test_cagrad_lies_between_the_mean_and_mgda() -> None:
    close(aggregators.CAGrad(c=0.0)(LOSSES, J), [1, 1, 1])
    far = aggregators.CAGrad(c=10.0)(LOSSES, J)
    close(far / far.norm(), [0, 1 / sqrt(2), 1 / sqrt(2)])


def test_nash_is_as_long_as_the_square_root_of_the_tasks() -> None:
    assert float(aggregators.NashMTL(max_norm=0.0)(LOSSES, J).square().sum()) == pytest.approx(2, abs=1e-6)


def test_nash_solves_its_equation_and_forgets_the_lengths_of_the_rows() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(100):
        rows = torch.randn(4, 9, generator=rng, dtype=torch.float64)
        found = aggregators.NashMTL(max_norm=0.0)(torch.ones(4), rows)
        weights = torch.linalg.lstsq(rows.T, found[:, None]).solution[:, 0]
        torch.testing.assert_close(rows @ rows.T @ weights, 1 / weights, rtol=1e-6, atol=0)
        lengths = torch.logspace(-8, 8, 4, dtype=torch.float64)[:, None]
        again = aggregators.NashMTL(max_norm=0.0)(torch.ones(4), lengths * rows)
        torch.testing.assert_close(again, found, rtol=1e-6, atol=1e-6)


def test_uncertainties_are_at_their_optimum_where_s_is_the_log_of_the_loss() -> None:
    weights = aggregators.UW(2)
    weights.inner.log_var.data = LOSSES.log()
    close(weights(LOSSES, J), rows(1 / 2, 1 / 4))
    close(weights.inner.log_var.grad, [0, 0])
    scales = aggregators.IMTLL(2)
    scales.inner.log_scale.data = -LOSSES.log()
    close(scales(LOSSES, J), rows(1, 1 / 2))
    close(scales.inner.log_scale.grad, [0, 0])


def test_dwa_weighs_by_the_rate_of_descent() -> None:
    """Epochs of two calls; mean losses (4, 4), then (1, 4): rates of 1/4 and 1."""
    dwa = aggregators.DWA(2)
    for losses in ([3, 5], [5, 3], [0.5, 4], [1.5, 4]):
        close(dwa(torch.tensor(losses, dtype=torch.float64), J), [2, 2, 2])
    close(dwa(LOSSES, J), [2 * entry for entry in rows(*softmax(1 / 8, 1 / 2))])


def test_gradnorm_moves_by_the_sign_of_what_is_missing() -> None:
    """Norms sqrt(18) and sqrt(38); with alpha = 0 the target is their mean, then the weights sum to 2."""
    balance, unit = aggregators.GradNorm(alpha=0.0, rate=0.1), (sqrt(18) + sqrt(38)) / 2
    close(balance(LOSSES, J), [2, 2, 2])
    first, second = 1 + 0.1 * sqrt(18) / unit, 1 - 0.1 * sqrt(38) / unit
    close(balance(LOSSES, J), [2 / (first + second) * entry for entry in rows(first, second)])


def test_gradnorm_gives_more_to_a_task_that_lags_behind() -> None:
    """Equal norms: with alpha > 0 the task whose loss has fallen less is pulled up."""
    balance, equal = aggregators.GradNorm(alpha=1.0), torch.eye(2, dtype=torch.float64)
    balance(torch.tensor([1.0, 1.0]), equal)
    for _ in range(5):
        found = balance(torch.tensor([0.5, 0.9]), equal)
    assert found[1] > 1.05 and found[0] < 0.95 and float(found.sum()) == pytest.approx(2)


def test_dbmtl_smooths_gradients_of_the_log_losses() -> None:
    dual = aggregators.DBMTL(beta=0.5, sigma=1.0)
    dual(LOSSES, J)
    second = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    mean = second + 0.25 * (J / LOSSES[:, None] - second)  # beta / k = 1/4
    norms = mean.norm(dim=1)
    expected = (norms.max() / norms) @ mean
    close(dual(torch.ones(2), second), expected.tolist())


def test_adatask_is_one_adam_for_each_task() -> None:
    theta = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=1.0)
    adapt = aggregators.AdaTask()
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        before = theta.detach().clone()
        theta.grad = torch.randn(2, 3, generator=rng, dtype=torch.float64) * torch.tensor([[1e3], [1e-3]])
        found = adapt(LOSSES, theta.grad)
        adam.step()
        close(found, (before - theta.detach()).sum(0).tolist())


def test_famo_moves_its_logits_by_the_fall_of_the_log_losses() -> None:
    """The first step of its Adam is `lr sign(gradient)`, here (-, +): the first loss fell more."""
    famo = aggregators.FAMO(2, lr=0.1, weight_decay=0.0)
    famo(LOSSES, J)
    famo.update(torch.tensor([0.5, 2.0], dtype=torch.float64))
    shares = softmax(-0.1, 0.1)
    total = shares[0] / 1 + shares[1] / 2
    close(famo(LOSSES, J), rows(shares[0] / total, shares[1] / 2 / total))


def test_auto_lambda_moves_by_the_inner_products_with_the_validation_gradient() -> None:
    weights = aggregators.AutoLambda(rate=0.01)
    weights(LOSSES, J)
    weights.look_ahead(primary=[1])(LOSSES, torch.tensor([[9.0, 9, 9], [1, 0, 0]], dtype=torch.float64))
    close(weights(LOSSES, J), rows(0.1 - 0.04, 0.1 + 0.06))


def test_loss_ascent_is_exponentiated_gradient() -> None:
    ascent = aggregators.LossAscent(rate=0.5)
    for _ in range(4):
        found = ascent(LOSSES, J)
    close(found, rows(*softmax(2, 4)))
