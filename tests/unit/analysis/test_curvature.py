"""Second derivatives against dense Hessians, and what they cost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, analysis, engines, recipes
from metamtl.analysis.functions import TaskFunctions

EXACT = {
    "joint": recipes.joint(),
    "maml": recipes.maml(steps=2, lr=0.1),
    "checkpointed": recipes.maml(steps=2, lr=0.1, differentiation="checkpointed"),
}


def hessians(args: Any) -> Tensor:
    """The dense Hessian of every task's objective, `[T, n, n]`, by plain second-order autograd."""
    model, recipe, episodes, loss = args
    steps, lr = getattr(recipe.adapter, "steps", 0), 0.1
    shapes = [p.shape for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def value(flat: Tensor, t: int) -> Tensor:
        parts = flat.split([s.numel() for s in shapes])
        params = {n: p.view(s) for n, p, s in zip(names, parts, shapes)}
        one = episodes[t]
        for _ in range(steps):
            inner = loss(torch.func.functional_call(model, params, (one.support.x,)), one.support.y)
            grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
            params = {n: p - lr * g for (n, p), g in zip(params.items(), grads)}
        return loss(torch.func.functional_call(model, params, (one.query.x,)), one.query.y)

    def dense(t: int) -> Tensor:
        return torch.autograd.functional.hessian(lambda f: value(f, t), flat)

    return torch.stack([dense(t) for t in range(episodes.num_tasks)])


@pytest.mark.slow
@pytest.mark.parametrize("way", EXACT)
def test_mixed_second_derivatives(batch: SimpleNamespace, way: str) -> None:
    args = batch.args(EXACT[way])
    grads, dense = analysis.gradients(*args), hessians(args)
    rows = grads.matrix()
    mean = analysis.mixed_second_derivatives(*args).matrix
    torch.testing.assert_close(mean, rows @ dense.mean(0) @ rows.T, rtol=1e-10, atol=1e-12)
    one = analysis.mixed_second_derivatives(*args, of="2", grads=grads).matrix
    torch.testing.assert_close(one, rows @ dense[2] @ rows.T, rtol=1e-10, atol=1e-12)


def test_mixed_second_derivatives_are_those_of_the_loss() -> None:
    """On quadratic objectives, differences of finite steps are exact."""
    x, y = torch.randn(3, 8, 3).double(), torch.randn(3, 8, 2).double()
    args = (nn.Linear(3, 2).double(), recipes.joint(), Episode(None, Batch(x, y)), F.mse_loss)
    grads = analysis.gradients(*args)
    tasks, second = TaskFunctions.of(*args), analysis.mixed_second_derivatives(*args, grads=grads)
    i, j = grads.direction("0"), grads.direction("1")

    def mean_loss(a: float, b: float) -> float:
        return float(tasks.losses({n: p - a * i[n] - b * j[n] for n, p in tasks.params.items()}).mean())

    mixed = mean_loss(1, 1) - mean_loss(1, 0) - mean_loss(0, 1) + mean_loss(0, 0)
    assert second["0", "1"] == pytest.approx(mixed, rel=1e-10)


def test_named_tasks(named: SimpleNamespace) -> None:
    second = analysis.mixed_second_derivatives(*named.args).matrix
    torch.testing.assert_close(second, second.T, rtol=1e-10, atol=1e-12)
    assert analysis.spectrum(*named.args, k=3, of="a").values[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["joint", "maml"])
def test_the_spectrum_is_exact_on_small_models(batch: SimpleNamespace, way: str) -> None:
    args = (batch.model, EXACT[way], batch.episodes[:2], batch.loss)
    dense = hessians(args)
    values, _ = torch.linalg.eigh(dense.mean(0))
    expected = values[values.abs().argsort(descending=True)[:4]].sort(descending=True).values
    result = analysis.spectrum(*args, k=4, iterations=len(values))
    torch.testing.assert_close(result.values, expected, rtol=1e-9, atol=1e-11)
    assert float(result.residuals.max()) < 1e-9 and result.products == len(values)
    short = analysis.spectrum(*args, k=1, iterations=12)
    assert float((short.values[0] - expected[0]).abs()) <= float(short.residuals[0]) + 1e-12
    assert analysis.spectrum(*args, k=1, of="1", iterations=71).values[0] == pytest.approx(
        float(torch.linalg.eigvalsh(dense[1]).abs().max()), rel=1e-9
    )


def test_curvature_overlap(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.joint())
    overlap = analysis.curvature_overlap(*args, k=3, iterations=71)
    bases = [v[:, s.abs().argsort(descending=True)[:3]] for s, v in map(torch.linalg.eigh, hessians(args))]
    expected = torch.tensor(
        [[float((a.T @ b).square().sum()) / 3 for b in bases] for a in bases], dtype=torch.float64
    )
    torch.testing.assert_close(overlap.matrix, expected, rtol=1e-9, atol=1e-9)
    assert overlap.error is not None and overlap.error < 1e-8
    same = Episode(None, Batch(batch.episodes.query.x[[0, 0]], batch.episodes.query.y[[0, 0]]))
    pair = analysis.curvature_overlap(batch.model, recipes.joint(), same, batch.loss, k=2)
    assert pair["0", "1"] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="fewer than k"):
        loss = lambda output, y: output.mean()  # noqa: E731
        analysis.curvature_overlap(nn.Linear(3, 2).double(), recipes.joint(), batch.episodes, loss, k=2)


def test_gradients_that_have_no_hessian(batch: SimpleNamespace) -> None:
    for recipe in (recipes.fomaml(), recipes.imaml(), recipes.maml(differentiation="truncated")):
        with pytest.raises(ValueError, match="differentiation='exact'"):
            analysis.mixed_second_derivatives(*batch.args(recipe))
    with pytest.raises(ValueError, match="no task 'z'"):
        analysis.spectrum(*batch.args(recipes.joint()), of="z")
    with pytest.raises(ValueError, match="k=0"):
        analysis.spectrum(*batch.args(recipes.joint()), k=0)
    with pytest.raises(ValueError, match="argmax"):
        model, recipe, episodes, _ = batch.args(recipes.joint())
        analysis.spectrum(model, recipe, episodes, lambda o, y: o.detach().mean())


COUNTS = {"first": 0, "second": 0}


class Second(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        COUNTS["second"] += 1
        return g


class First(Second):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        COUNTS["first"] += 1
        return Second.apply(g)


class Counting(nn.Module):
    """Counts backward passes, and backward passes through backward passes."""

    def forward(self, x: Tensor) -> Tensor:
        return First.apply(x)


def test_counted_cost(batch: SimpleNamespace) -> None:
    """First order: one backward pass for each task. Second order: one Hessian-vector product for each."""
    model, loop = nn.Sequential(*batch.model, Counting()), engines.Loop()
    args = (model, recipes.joint(), batch.episodes, batch.loss)

    def counted(function: Any) -> dict[str, int]:
        COUNTS.update(first=0, second=0)
        function()
        return dict(COUNTS)

    def first_order() -> None:
        grads = analysis.gradients(*args, engine=loop)
        analysis.cosine_by_layer(grads), analysis.transfer(grads, 0.1), analysis.gramian(grads)
        analysis.look_ahead(*args, lr=0.1, grads=grads)

    assert counted(first_order) == {"first": 4, "second": 0}
    grads = analysis.gradients(*args, engine=loop)
    of_one = counted(lambda: analysis.mixed_second_derivatives(*args, of="1", grads=grads))
    assert of_one["second"] == 4  # one product of one task's Hessian for each of the four gradients
    of_mean = counted(lambda: analysis.mixed_second_derivatives(*args, grads=grads))
    assert of_mean["second"] == 4 * 4  # one product of the mean Hessian, a sum over four tasks, for each
