"""Penalties on towers: closed forms, and how often they enter a step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, aggregators, meta_backward, nets, recipes
from metamtl.functional import Params
from metamtl.objectives import Penalty, l2_to_mean, low_rank, nuclear_norm, penalized

T, N = 4, 6


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def towers() -> tuple[Tensor, Params]:
    """A matrix with a row for each tower, and the same as parameters beside a head."""
    rows = torch.randn(T, N, dtype=torch.float64, requires_grad=True)
    params: Params = {f"towers.t{t}.0.weight": rows[t].view(2, 3) for t in range(T)}
    return rows, {**params, "heads.t0.weight": torch.ones(3, dtype=torch.float64)}


def check(penalty: Penalty, value: Tensor, gradient: Tensor) -> None:
    rows, params = towers()
    found = penalty(params)
    torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.autograd.grad(found, rows)[0], gradient, rtol=1e-10, atol=1e-12)


def twin() -> Tensor:
    """The matrix that `towers` will draw next."""
    state = torch.get_rng_state()
    rows = torch.randn(T, N, dtype=torch.float64)
    torch.set_rng_state(state)
    return rows


def test_spread_is_the_distance_to_the_mean_tower() -> None:
    rows = twin()
    gaps = rows - rows.mean(0)
    check(l2_to_mean(), 0.5 * gaps.square().sum(), gaps)


def test_the_nuclear_norm_is_the_sum_of_singular_values_with_gradient_u_vt() -> None:
    rows = twin()
    u, s, vt = torch.linalg.svd(rows, full_matrices=False)
    check(nuclear_norm(), s.sum(), u @ vt)
    # of a matrix with orthogonal rows it is the sum of their lengths
    params = {f"towers.{t}.w": 3.0 * torch.eye(T)[t] for t in range(T)}
    torch.testing.assert_close(nuclear_norm()(params), torch.tensor(12.0))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_subspace_is_the_distance_to_the_nearest_one(rank: int) -> None:
    rows = twin()
    u, s, vt = torch.linalg.svd(rows, full_matrices=False)
    nearest = (u[:, :rank] * s[:rank]) @ vt[:rank]
    check(low_rank(rank), (rows - nearest).square().sum(), 2 * (rows - nearest))


def test_towers_in_a_subspace_pay_nothing() -> None:
    basis, mix = torch.randn(2, N).double(), torch.randn(T, 2).double()
    params = {f"towers.t{t}.w": (mix @ basis)[t] for t in range(T)}
    assert float(low_rank(2)(params)) < 1e-25 < float(low_rank(1)(params))
    same = {f"towers.t{t}.w": basis[0] for t in range(T)}
    assert float(l2_to_mean()(same)) < 1e-25
    torch.testing.assert_close(nuclear_norm()(same), basis[0].norm() * T**0.5)  # one singular value


def test_every_parameter_of_the_towers_counts() -> None:
    rows, params = towers()
    two = {**params, **{f"towers.t{t}.0.bias": 2 * rows[t, :1] for t in range(T)}}
    bias = {name: value for name, value in two.items() if "bias" in name}
    for penalty in (l2_to_mean(), nuclear_norm(), low_rank(1)):
        torch.testing.assert_close(penalty(two), penalty(params) + penalty(bias))


def test_equal_towers_have_finite_gradients() -> None:
    for penalty in (l2_to_mean(), nuclear_norm(), low_rank(1)):
        rows = torch.zeros(T, N, dtype=torch.float64, requires_grad=True)
        params = {f"towers.t{t}.w": rows[t] for t in range(T)}
        assert bool(torch.isfinite(torch.autograd.grad(penalty(params), rows)[0]).all())


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOSS = {"a": F.cross_entropy, "b": F.mse_loss}
EPISODES = {
    "a": Episode(None, Batch(X, torch.tensor([0, 1, 2, 0, 1]))),
    "b": Episode(None, Batch(X, X[:, :1])),
}


def soft() -> nets.SoftSharing:
    return nets.SoftSharing(lambda: nn.Linear(4, 6), 6, {"a": 3, "b": 1}).double()


def expected(model: nn.Module, weight: float, share: float) -> dict[str, Tensor]:
    """The gradient of `share * (L_a + L_b) + weight * penalty`."""
    params = dict(model.named_parameters())
    losses = sum(LOSS[name](model(X, task=name), e.query.y) for name, e in EPISODES.items())
    plain = torch.autograd.grad(losses, list(params.values()))
    pull = torch.autograd.grad(nuclear_norm()(params), list(params.values()), allow_unused=True)
    pull = [torch.zeros_like(g) if p is None else p for g, p in zip(plain, pull)]
    return {name: share * g + weight * p for name, g, p in zip(params, plain, pull)}


@pytest.mark.parametrize(
    ("aggregator", "share", "times"),
    [(aggregators.Mean(), 0.5, 1), (aggregators.TorchJD("Sum"), 1.0, 2)],
)
def test_in_the_objective_a_penalty_enters_once_under_a_mean_and_t_times_under_a_sum(
    aggregator: aggregators.Aggregator, share: float, times: int
) -> None:
    model = soft()
    recipe = recipes.joint(objective=penalized(nuclear_norm(), 0.1), aggregator=aggregator)
    outcome = meta_backward(model, recipe, EPISODES, LOSS)
    for name, gradient in expected(model, 0.1 * times, share).items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-10, atol=1e-13)
    plain = LOSS["a"](model(X, task="a"), EPISODES["a"].query.y)
    torch.testing.assert_close(outcome.losses[0], plain.detach())  # the query loss, without the penalty


def test_beside_meta_backward_a_penalty_enters_once_whatever_the_aggregator() -> None:
    model = nets.SharedBottom(nn.Linear(4, 4), soft()).double()
    recipe = recipes.joint(aggregator=aggregators.TorchJD("Sum"))
    meta_backward(model, recipe, EPISODES, LOSS)
    before = {name: param.grad.clone() for name, param in model.named_parameters()}
    penalty = nuclear_norm("top.towers")
    (0.1 * penalty(dict(model.named_parameters()))).backward()
    params = dict(model.named_parameters())
    pull = torch.autograd.grad(penalty(params), list(params.values()), allow_unused=True)
    for (name, param), p in zip(params.items(), pull):
        assert (p is None) == (not name.startswith("top.towers."))
        added = 0.0 if p is None else 0.1 * p
        torch.testing.assert_close(param.grad, before[name] + added, rtol=1e-12, atol=1e-14)


def test_towers_without_a_penalty_share_nothing() -> None:
    with pytest.raises(ValueError, match="share no parameter"):
        meta_backward(soft(), recipes.joint(), EPISODES, LOSS)


def test_a_frozen_tower_is_what_the_other_is_drawn_to() -> None:
    model = soft()
    model.towers["b"].requires_grad_(False)
    model.heads["b"].requires_grad_(False)
    recipe = recipes.joint(objective=penalized(l2_to_mean(), 1.0, lambda task: torch.zeros(()).double()))
    meta_backward(model, recipe, EPISODES, LOSS)
    towers = model.towers
    torch.testing.assert_close(towers["a"].weight.grad, (towers["a"].weight - towers["b"].weight) / 2)


@pytest.mark.parametrize(
    ("penalty", "params", "words"),
    [
        (l2_to_mean("tower"), {"towers.a.w": X}, r"prefix='tower' holds 0 towers.*under 'towers'"),
        (nuclear_norm(), {"towers.a.w": X, "heads.a": X}, r"holds 1 towers.*needs two"),
        (l2_to_mean(), {"towers.a.w": X, "towers.b.v": X}, r"'a' and 'b' have parameters of different"),
        (l2_to_mean(), {"towers.a.w": X, "towers.b.w": X[1:]}, r"\{'w': \[5, 4\]\} and \{'w': \[4, 4\]\}"),
        (low_rank(2), {"towers.a.w": X, "towers.b.w": X}, r"rank=2: 2 towers always lie"),
    ],
)
def test_refused_in_words(penalty: Penalty, params: Params, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        penalty(params)


def test_a_negative_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="rank=-1 cannot be negative"):
        low_rank(-1)
