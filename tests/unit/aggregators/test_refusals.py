"""What an aggregator cannot work with, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, aggregators, meta_backward, nets, recipes
from metamtl.aggregators import Aggregator

ROWS = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]])
POSITIVE: dict[str, Callable[[], Aggregator]] = {
    "GeometricMean": lambda: aggregators.GeometricMean(),
    "DWA": lambda: aggregators.DWA(1),
    "FAMO": lambda: aggregators.FAMO(3),
    "GradNorm": aggregators.GradNorm,
    "DBMTL": aggregators.DBMTL,
}


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_losses_that_are_not_positive(name: str, bad: float) -> None:
    aggregator = POSITIVE[name]()
    before = {key: value for key, value in aggregator.state_dict().items() if isinstance(value, Tensor)}
    with pytest.raises(ValueError, match=rf"{name} needs positive losses, but those of tasks \[1\] are \["):
        aggregator(torch.tensor([1.0, bad, 2.0]), ROWS)
    assert all(torch.equal(before[key], aggregator.state_dict()[key]) for key in before)


def test_losses_below_famos_bounds() -> None:
    famo = aggregators.FAMO(3, min_losses=torch.tensor([0.0, 0.5, 0.0]))
    with pytest.raises(ValueError, match=r"FAMO needs positive losses.* tasks \[1\]"):
        famo(torch.tensor([0.3, 0.4, 0.5]), ROWS)


@pytest.mark.parametrize(
    "build",
    [aggregators.GradNorm, aggregators.DBMTL, aggregators.AdaTask, aggregators.LossAscent],
)
def test_another_number_of_tasks(build: Callable[[], Aggregator]) -> None:
    aggregator = build()
    aggregator(torch.ones(3), ROWS)
    words = rf"{build.__name__} has weights or a state for 3 tasks; this batch has 2. Use one aggregator"
    with pytest.raises(ValueError, match=words):
        aggregator(torch.ones(2), ROWS[:2])


FOUR = "has weights or a state for 4 tasks; this batch has 3"
COUNTED: dict[str, tuple[Callable[[], Aggregator], str]] = {
    "Constant": (lambda: aggregators.Constant(weights=torch.ones(4)), FOUR),
    "DualProj": (lambda: aggregators.DualProj(pref_vector=torch.ones(4)), FOUR),
    "FAMO": (lambda: aggregators.FAMO(4), FOUR),
    "IMTLL": (lambda: aggregators.IMTLL(4), FOUR),
    "Krum": (lambda: aggregators.Krum(n_byzantine=1), r"at least 4 rows.* with 3 rows"),
    "PBI": (lambda: aggregators.PBI(theta=1.0, weights=torch.ones(4)), FOUR),
    "TrimmedMean": (lambda: aggregators.TrimmedMean(trim_number=2), "at least 5 rows"),
    "UW": (lambda: aggregators.UW(4), FOUR),
}


@pytest.mark.parametrize("name", COUNTED)
def test_made_for_more_tasks_than_there_are(name: str) -> None:
    build, words = COUNTED[name]
    with pytest.raises(ValueError, match=words):
        build()(torch.ones(3), ROWS)


def test_auto_lambda_without_a_look_ahead() -> None:
    weights = aggregators.AutoLambda(rate=0.1, every=2)
    for _ in range(2):
        weights(torch.ones(3), ROWS)
    with pytest.raises(RuntimeError, match=r"called 2 times without a look-ahead.*look_ahead\(\)"):
        weights(torch.ones(3), ROWS)
    weights.look_ahead()(torch.ones(3), ROWS)
    weights(torch.ones(3), ROWS)


def test_a_look_ahead_that_does_not_fit() -> None:
    weights = aggregators.AutoLambda(rate=0.1)
    with pytest.raises(RuntimeError, match="a look-ahead comes after a training step"):
        weights.look_ahead()(torch.ones(3), ROWS)
    weights(torch.ones(3), ROWS)
    with pytest.raises(ValueError, match="validation gradient has 5 entries, the training rows have 2"):
        weights.look_ahead()(torch.ones(3), torch.ones(3, 5))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: aggregators.DWA(0), "calls_per_epoch=0: an epoch has at least one call"),
        (lambda: aggregators.NashMTL(-1.0), "max_norm=-1.0: pass a norm, or 0"),
        (lambda: aggregators.Rescaled(aggregators.Mean(), "median"), "norm='median': pass 'mean'"),
        (lambda: aggregators.Rescaled(aggregators.Mean(), 0.0), "norm=0.0: pass 'mean'.*above 0"),
    ],
)
def test_options_that_cannot_work(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


def test_a_name_that_is_no_scalarizer() -> None:
    with pytest.raises(AttributeError, match=r"no scalarizer 'Median' is offered; there are COSMOS, .*UW"):
        aggregators.Scalarized("Median")


def two_tasks(x: Tensor) -> tuple[nn.Module, dict[str, Episode], dict[str, Any]]:
    """Case learns as ever; the loss of size does not change with its output, but is built of it."""
    torch.manual_seed(0)
    model = nets.named_heads(nets.mlp(4, 8, 1), {"case": 3, "size": 1})
    episodes = {
        "case": Episode(None, Batch(x, torch.tensor([0, 1, 2, 0, 1]))),
        "size": Episode(None, Batch(x, torch.zeros(5, 1))),
    }
    return model, episodes, {"case": F.cross_entropy, "size": lambda output, y: 1 + 0 * output.sum()}


@pytest.mark.parametrize("at", [None, "body"])
@pytest.mark.parametrize("name", ["MGDA", "CAGrad"])
def test_a_zero_gradient_that_would_stop_all_tasks(name: str, at: str | None) -> None:
    model, episodes, losses = two_tasks(torch.randn(5, 4))
    aggregator = getattr(aggregators, name)(**({"c": 0.5} if name == "CAGrad" else {}))
    with pytest.raises(ValueError, match=rf"{name} makes a zero direction, .* tasks \['size'\] is zero"):
        meta_backward(model, recipes.joint(aggregator=aggregator, layer=at), episodes, losses)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("at", [None, "body"])
@pytest.mark.parametrize("name", ["Mean", "PCGrad", "UPGrad", "IMTLG", "ConFIG", "GradNorm", "FairGrad"])
def test_a_zero_gradient_that_leaves_the_others_their_say(name: str, at: str | None) -> None:
    model, episodes, losses = two_tasks(torch.randn(5, 4))
    aggregator = getattr(aggregators, name)(**({"alpha": 1.0} if name == "FairGrad" else {}))
    meta_backward(model, recipes.joint(aggregator=aggregator, layer=at), episodes, losses)
    grads = [param.grad for param in model.body.parameters()]
    assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in grads)


def test_a_task_of_zero_gradient_has_no_bargain() -> None:
    model, episodes, losses = two_tasks(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"NashMTL has no solution .* tasks \[1\] are"):
        meta_backward(model, recipes.joint(aggregator=aggregators.NashMTL()), episodes, losses)


class Broken(Aggregator):
    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        return rows.mean(0) / 0


@pytest.mark.parametrize("at", [None, "body"])
def test_a_direction_that_is_not_finite(at: str | None) -> None:
    model, episodes, losses = two_tasks(torch.randn(5, 4))
    with pytest.raises(FloatingPointError, match=r"the direction that Broken computes is not"):
        meta_backward(model, Recipe(adapters.Shared(), Broken(), layer=at), episodes, losses)
    assert all(param.grad is None for param in model.parameters())


def test_nan_in_one_task_is_refused_before_any_aggregator() -> None:
    model, episodes, losses = two_tasks(torch.randn(5, 4))
    losses["size"] = lambda output, y: output.sum().sub(output.sum()).sqrt()  # its gradient is NaN
    adapt = aggregators.AdaTask()
    with pytest.raises(FloatingPointError, match=r"gradient of tasks \['size'\] of 2 is not finite"):
        meta_backward(model, recipes.joint(aggregator=adapt), episodes, losses)
    assert int(adapt.calls) == 0 and all(param.grad is None for param in model.parameters())
