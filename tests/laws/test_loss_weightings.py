"""Aggregators that weight losses are the gradient of the weighted loss, for every parameter.

A new one joins by one row in `SCALARIZERS`, or by itself if TorchJD has no scalarizer of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd import scalarization

from metamtl import aggregators

TASKS = ("a", "b")
Make = Callable[..., aggregators.Aggregator]
# TorchJD's scalarizer for two tasks, with the options of the fixture `make`.
SCALARIZERS: dict[str, Callable[[], nn.Module]] = {
    "COSMOS": lambda: scalarization.COSMOS(0.1, torch.ones(2, dtype=torch.float64)),
    "Constant": lambda: scalarization.Constant(torch.tensor([1.0, 2.0], dtype=torch.float64)),
    "DWA": scalarization.DWA,
    "FAMO": lambda: scalarization.FAMO(2).double(),
    "GeometricMean": scalarization.GeometricMean,
    "IMTLL": lambda: scalarization.IMTLL(2).double(),
    "Mean": scalarization.Mean,
    "PBI": lambda: scalarization.PBI(5.0, torch.ones(2, dtype=torch.float64)),
    "STCH": lambda: scalarization.STCH(0.1),
    "Sum": scalarization.Sum,
    "UW": lambda: scalarization.UW(2).double(),
}
WEIGHTINGS = [*SCALARIZERS, "AutoLambda", "GradNorm", "LossAscent", "Random", "RawLossAscent"]


class TwoHeads(nn.Module):
    """A shared body and a head for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Linear(3, 4)
            self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in TASKS})
        self.double()

    def losses(self, step: int) -> Tensor:
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, generator=rng, dtype=torch.float64)
        features = self.body(x).tanh()
        targets = {"a": x.sum(1, keepdim=True), "b": 3 * x[:, :1]}
        return torch.stack([(self.heads[t](features) - targets[t]).square().mean() for t in TASKS])


def weighted_backward(model: TwoHeads, losses: Tensor, aggregator: aggregators.Aggregator) -> Tensor:
    """What `meta_backward` does with a weighting: one set of weights for shared parameters and heads."""
    shared, heads = list(model.body.parameters()), list(model.heads.parameters())
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)])
            for loss in losses
        ]
    )
    combined = aggregator.combine(losses, rows, TASKS)
    assert combined.direction is not None and combined.weights is not None
    pieces = combined.direction.split([p.numel() for p in shared])
    for param, piece in zip(shared, pieces):
        param.grad = piece.view_as(param)
    for param, gradient in zip(heads, torch.autograd.grad(losses, heads, combined.weights)):
        param.grad = gradient
    return combined.weights


def step(model: TwoHeads) -> None:
    with torch.no_grad():
        for param in model.parameters():
            param -= 0.05 * param.grad


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_declares_itself(name: str, make: Make) -> None:
    aggregator = make(name, 2)
    expected = {"AutoLambda": "rows", "GradNorm": "gramian"}.get(name, "losses")
    assert aggregator.reads == expected
    rows, losses = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    combined = aggregator.combine(losses, rows)
    assert combined.weights is not None and combined.weights.shape == (2,)
    assert not combined.weights.requires_grad
    assert torch.equal(combined.direction, combined.weights.to(rows) @ rows)
    if expected == "losses":
        weights = make(name, 2).combine(losses, None).weights
        assert torch.equal(weights, combined.weights)
    else:
        with pytest.raises(ValueError, match="depends on the gradients"):
            make(name, 2).combine(losses, None)


def test_all_others_combine_gradients(make: Make) -> None:
    rows = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.3, 0.0, 1.0]], dtype=torch.float64)
    for name in set(aggregators.names()) - set(WEIGHTINGS):
        aggregator = make(name, 3)
        assert aggregator.combine(torch.ones(3, dtype=torch.float64), rows).weights is None
        assert aggregator.reads in ("gramian", "columns", "rows")


@pytest.mark.parametrize("name", SCALARIZERS)
def test_every_parameter_gets_the_gradient_of_torchjds_scalarizer(name: str, make: Make) -> None:
    """`scalarizer(losses).backward()`, over five steps of training, heads included."""
    ours, theirs = TwoHeads(), TwoHeads()
    options = {"weights": torch.tensor([1.0, 2.0], dtype=torch.float64)} if name == "Constant" else {}
    aggregator, scalarizer = make(name, 2, **options), SCALARIZERS[name]()
    for k in range(5):
        ours.zero_grad()
        theirs.zero_grad()
        losses = theirs.losses(k)
        if name == "FAMO" and k:
            scalarizer.update(losses.detach())
        scalarizer(losses).backward()
        if name == "DWA" and k % 2:
            scalarizer.step()
        weighted_backward(ours, ours.losses(k), aggregator)
        for param, expected in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(param.grad, expected.grad, rtol=1e-10, atol=1e-12)
        step(ours)
        step(theirs)
    for own, other in zip(aggregator.parameters(), scalarizer.parameters()):
        assert (own.grad is None) == (other.grad is None)
        if own.grad is not None:
            torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_rescaled_weightings_are_weightings(name: str, make: Make) -> None:
    model, aggregator = TwoHeads(), aggregators.Rescaled(make(name, 2))
    losses = model.losses(0)
    weights = weighted_backward(model, losses, aggregator)
    expected = torch.autograd.grad(weights @ model.losses(0), list(model.parameters()))
    for param, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(param.grad, gradient, rtol=1e-10, atol=1e-12)


def test_rescaled_sum_is_the_mean_for_every_parameter() -> None:
    result, expected = TwoHeads(), TwoHeads()
    weighted_backward(result, result.losses(0), aggregators.Rescaled(aggregators.Sum()))
    weighted_backward(expected, expected.losses(0), aggregators.Mean())
    for param, other in zip(result.parameters(), expected.parameters()):
        torch.testing.assert_close(param.grad, other.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["UW", "IMTLL", "GeometricMean", "STCH"])
def test_a_scalarizer_of_torchjd_is_wrapped(name: str) -> None:
    ours = aggregators.as_aggregator(SCALARIZERS[name]())
    losses, rows = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    options: Any = {"UW": (2,), "IMTLL": (2,), "STCH": (0.1,)}.get(name, ())
    assert torch.equal(ours(losses, rows), getattr(aggregators, name)(*options)(losses, rows))


def test_an_aggregator_that_reads_losses_defines_weights() -> None:
    class Halved(aggregators.Mean):
        def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor | None:
            return None

    with pytest.raises(TypeError, match="Halved has reads='losses' but defines no weights"):
        Halved().combine(torch.ones(2), None)
