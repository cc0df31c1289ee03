"""Per-task gradients as a value."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, analysis, engines, nets, recipes
from metamtl.functional.third_order import differentiable_ops


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap(), engines.Auto(), None], ids=repr)
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("steps", [0, 2])
def test_gradients_are_those_of_autograd(
    batch: SimpleNamespace, reference: Callable[..., Tensor], engine: Any, chunk: Any, steps: int
) -> None:
    args = batch.args(recipes.maml(steps=steps, lr=0.1))
    grads = analysis.gradients(*args, chunk=chunk, engine=engine)
    expected = reference(args, steps, 0.1)
    torch.testing.assert_close(grads.matrix(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads.gramian(), expected @ expected.T, rtol=1e-10, atol=1e-12)
    assert grads.tasks == ("0", "1", "2", "3") and list(grads.layers) == ["0", "2", "4"]
    assert all(p.grad is None for p in batch.model.parameters())


@pytest.mark.slow
def test_gradients_under_compiled(
    batch: SimpleNamespace, reference: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamtl.engines.kinds.BACKEND", "eager")
    args = batch.args(recipes.maml(steps=2, lr=0.1))
    grads = analysis.gradients(*args, engine=engines.Compiled())
    torch.testing.assert_close(grads.matrix(), reference(args, 2, 0.1), rtol=1e-10, atol=1e-12)


def test_the_mean_of_examples_is_the_gradient_of_the_task(
    batch: SimpleNamespace, named: SimpleNamespace
) -> None:
    for args in (batch.args(recipes.maml(steps=1, lr=0.1)), named.args):
        grads = analysis.gradients(*args)
        rows = analysis.gradients(*args, per="example", chunk=5)
        count = len(rows.tasks) // len(grads.tasks)
        assert rows.tasks[count] == f"{grads.tasks[1]}[0]" and set(rows.rows) == set(grads.rows)
        means = rows.matrix().reshape(len(grads.tasks), count, -1).mean(1)
        torch.testing.assert_close(means, grads.matrix(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(rows.losses.reshape(-1, count).mean(1), grads.losses)


def test_groups_are_means_of_tasks(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.joint())
    matrix = analysis.gradients(*args).matrix()
    grads = analysis.gradients(*args, per="group", groups={"first": ["0", "1"], "last": ["3"]})
    torch.testing.assert_close(grads.matrix(), torch.stack([matrix[:2].mean(0), matrix[3]]))
    assert grads.tasks == ("first", "last")
    with pytest.raises(ValueError, match="no task '7'"):
        analysis.gradients(*args, per="group", groups={"first": ["7"]})
    with pytest.raises(ValueError, match="pass both"):
        analysis.gradients(*args, per="group")


def test_named_tasks_have_rows_for_the_shared_parameters(named: SimpleNamespace) -> None:
    grads = analysis.gradients(*named.args)
    assert grads.tasks == ("a", "b", "c") and all("heads" not in name for name in grads.rows)
    one = named.loss["b"](named.model(named.episodes["b"].query.x, task="b"), named.episodes["b"].query.y)
    expected = torch.autograd.grad(one, [named.model.get_parameter(n) for n in grads.rows])
    for value, gradient in zip(grads.direction("b").values(), expected):
        torch.testing.assert_close(value, gradient)
    with pytest.raises(ValueError, match="in one process"):
        analysis.gradients(*named.args, engine=engines.Sharded(engines.Loop()))
    with pytest.raises(ValueError, match="no parameter that all tasks share"):
        analysis.gradients(*named.args, layers=["heads.a"])


def test_gradients_at_features(named: SimpleNamespace) -> None:
    model, _, episodes, loss = named.args
    grads = analysis.gradients(model, recipes.joint(layer="body"), episodes, loss)
    assert list(grads.layers) == ["body"] and grads.rows["body"].shape == (3, 12, 6)


def test_layers_select_columns(batch: SimpleNamespace) -> None:
    args = batch.args(recipes.joint())
    grads, part = analysis.gradients(*args), analysis.gradients(*args, layers=["4", "0.weight"])
    assert list(part.layers) == ["4", "0.weight"]
    torch.testing.assert_close(part.gramian("4"), grads.gramian("4"))
    assert part.matrix().shape == (4, 12 + 18)
    with pytest.raises(ValueError, match="names no parameter"):
        analysis.gradients(*args, layers=["9"])
    with pytest.raises(ValueError, match="twice"):
        analysis.gradients(*args, layers=["4", "4.weight"])
    with pytest.raises(ValueError, match="no layer '9'"):
        grads.norms("9")


def test_a_sketch_keeps_cosines() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 400), nn.Tanh(), nn.Linear(400, 200), nn.Tanh(), nn.Linear(200, 3))
    x, y = torch.randn(12, 5, 60), torch.randint(3, (12, 5))
    args = (model, recipes.joint(), Episode(None, Batch(x + x.mean(1, keepdim=True), y)), F.cross_entropy)
    exact, project = analysis.gradients(*args), analysis.Sketch(seed=3)
    sketched = analysis.gradients(*args, project=project, chunk=5)
    assert exact.matrix().shape[1] > 100_000 and sketched.error == project.error < 0.012
    assert max(rows.shape[1] for rows in sketched.rows.values()) <= project.dim
    assert float((sketched.cosines() - exact.cosines()).abs().max()) < 0.05
    again = analysis.gradients(*args, project=project, engine=engines.Loop())
    torch.testing.assert_close(again.gramian(), sketched.gramian(), rtol=1e-4, atol=1e-7)
    other = analysis.gradients(*args, project=analysis.Sketch(seed=4))
    assert float((other.gramian() - sketched.gramian()).abs().max()) > 1e-6
    with pytest.raises(ValueError, match="sketched"):
        sketched.direction("0")


def test_a_sketch_is_unbiased_with_the_stated_error() -> None:
    a, b = torch.randn(2, 5_000, generator=torch.Generator().manual_seed(1)).double() + 0.5
    rows = torch.stack([a, a + b])
    rows = rows / rows.norm(dim=1, keepdim=True)
    exact = float(rows[0] @ rows[1])
    values = torch.tensor(
        [float(torch.prod(analysis.Sketch(64, seed)(rows, "w"), 0).sum()) for seed in range(400)]
    )
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / 20
    assert float(values.std()) < 1.5 * analysis.Sketch(64).error


def test_global_generators_do_not_change(batch: SimpleNamespace) -> None:
    model = nn.Sequential(batch.model, nn.Dropout(0.5))
    state = torch.get_rng_state()
    analysis.gradients(model, recipes.maml(), batch.episodes, batch.loss)
    assert torch.equal(torch.get_rng_state(), state)


def test_result_as_data(batch: SimpleNamespace) -> None:
    grads = analysis.gradients(*batch.args(recipes.joint()))
    assert json.loads(json.dumps(grads.as_dict()))["tasks"] == ["0", "1", "2", "3"]
    assert len(grads.scalars()) == 4
    grads.plot()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"per": "step"}, ValueError, "per='step'"),
        ({"groups": {}}, ValueError, "pass both"),
        ({"project": 64}, TypeError, "Sketch"),
        ({"chunk": 0}, ValueError, "chunk=0"),
    ],
)
def test_bad_options(batch: SimpleNamespace, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        analysis.gradients(*batch.args(recipes.joint()), **options)


def test_bad_losses(batch: SimpleNamespace, named: SimpleNamespace) -> None:
    model, episodes = batch.model, batch.episodes
    with pytest.raises(ValueError, match="no trainable parameter"):
        analysis.gradients(model, recipes.joint(), episodes, lambda o, y: o.detach().mean(), engine=None)
    with pytest.raises(FloatingPointError, match="not finite"):
        analysis.gradients(model, recipes.joint(), episodes, lambda o, y: (o * torch.nan).mean())
    grads = analysis.gradients(model, recipes.joint(), episodes, lambda o, y: (0 * o).mean())
    with pytest.raises(ValueError, match="are zero"):
        grads.cosines()
    separate = nets.NamedHeads(nn.Identity(), features=4, outputs={"a": 3, "b": 2, "c": 1}).double()
    with pytest.raises(ValueError, match="share no parameter"):
        analysis.gradients(separate, recipes.joint(), named.episodes, named.loss)
    with pytest.raises(ValueError, match=r"dim=0"):
        analysis.Sketch(0)


THIRD_ORDER = {
    "layer_norm": lambda x, w, b: F.layer_norm(x, (4, 5), w, b),
    "instance_norm": lambda x, w, b: F.instance_norm(x, None, None, w[:, 0], b[:, 0]),
    "group_norm": lambda x, w, b: F.group_norm(x.flatten(2), 2, w[:, 0], b[:, 0]),
}


@pytest.mark.parametrize("name", THIRD_ORDER)
def test_third_derivatives_of_norms(name: str) -> None:
    x, w, b = (torch.randn(3, 4, 5).double() for _ in range(3))
    w, b = w[0], b[0]

    def second(x: Tensor) -> Tensor:
        """A function of a second derivative; `gradcheck` tests its gradient, the third derivative."""
        value = THIRD_ORDER[name](x, w, b).pow(3).sum()
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)[0]

    plain = THIRD_ORDER[name](x, w, b)
    with differentiable_ops():
        torch.testing.assert_close(THIRD_ORDER[name](x, w, b), plain)
        assert torch.autograd.gradcheck(second, x.requires_grad_())
