"""Rows over the features that named tasks share: `layer=` of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, aggregators, meta_backward, nets, recipes, tasks

LOSSES: dict[str, Callable[..., Tensor]] = {"case": F.cross_entropy, "slant": F.mse_loss, "size": F.l1_loss}
OUTPUTS = {"case": 3, "slant": 1, "size": 2}
# Those that need options, or parameters' own memory, stand in other tests.
NAMES = ["ConFIG", "DualProj", "GradDrop", "IMTLG", "MGDA", "NashMTL", "PCGrad", "UPGrad", "GeometricMean"]


def net() -> nets.NamedHeads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        return nets.NamedHeads(body, 5, OUTPUTS).double()


def episodes() -> dict[str, Episode]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, generator=rng, dtype=torch.float64)
    targets = {
        "case": torch.randint(3, (8,), generator=rng),
        "slant": torch.randn(8, 1, generator=rng, dtype=torch.float64),
        "size": torch.randn(8, 2, generator=rng, dtype=torch.float64),
    }
    return {name: Episode(None, Batch(x, y)) for name, y in targets.items()}


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["Mean", "Sum", "Constant"])
def test_what_is_linear_gives_the_same_gradients_at_either_level(name: str) -> None:
    options = {"weights": torch.tensor([1.0, 2.0, 3.0])} if name == "Constant" else {}
    low, high = net(), net()
    for model, at in ((low, None), (high, "body")):
        recipe = recipes.joint(aggregator=getattr(aggregators, name)(**options), layer=at)
        outcome = meta_backward(model, recipe, episodes(), LOSSES)
        assert outcome.tasks == ("case", "slant", "size") and outcome.losses.shape == (3,)
    same(grads(high), grads(low))


@pytest.mark.parametrize("name", NAMES)
def test_the_aggregator_sees_the_gradients_of_the_features(name: str) -> None:
    """By hand: rows `[T, B F]`, one direction, one backward pass from the features."""
    model, byhand, data = net(), net(), episodes()
    meta_backward(model, recipes.joint(aggregator=getattr(aggregators, name)(), layer="body"), data, LOSSES)
    features = byhand.body(data["case"].query.x)
    losses = [LOSSES[task](byhand.heads[task](features), data[task].query.y) for task in data]
    rows = [torch.autograd.grad(loss, features, retain_graph=True)[0].flatten() for loss in losses]
    values = torch.stack(losses)
    direction, weights = getattr(aggregators, name)().combine(values.detach(), torch.stack(rows))
    weights = torch.ones(3) if weights is None else weights
    (weights * values).sum().backward(inputs=list(byhand.heads.parameters()), retain_graph=True)
    features.backward(direction.view_as(features), inputs=list(byhand.body.parameters()))
    same(grads(model), grads(byhand))


def test_one_pass_through_the_body_each_way() -> None:
    """Forward and backward once, where rows over the parameters take one backward pass for each task."""
    for at, backward in ((None, 3), ("body", 1)):
        model = net()
        passes = {"forward": 0, "backward": 0}

        class Counted(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor, passes: dict[str, int] = passes) -> Tensor:
                passes["forward"] += 1
                return x.clone()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor, passes: dict[str, int] = passes) -> Tensor:
                passes["backward"] += 1
                return gradient

        model.body[1].register_forward_hook(lambda module, x, y, count=Counted: count.apply(y))
        meta_backward(model, recipes.joint(aggregator=aggregators.MGDA(), layer=at), episodes(), LOSSES)
        assert passes == {"forward": 1, "backward": backward}


def test_it_accumulates_and_leaves_the_model_as_it_is() -> None:
    model, once, recipe = net(), net(), recipes.joint(aggregator=aggregators.MGDA(), layer="body")
    calls: list[int] = []
    model.body.register_forward_hook(lambda *_: calls.append(1))
    hooks = len(model.body._forward_hooks)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        meta_backward(model, recipe, episodes(), LOSSES)
    meta_backward(once, recipe, episodes(), LOSSES)
    same(grads(model), {name: 2 * grad for name, grad in grads(once).items()})
    assert len(calls) == 2 and len(model.body._forward_hooks) == hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_frozen_parameters_stay_without_a_gradient() -> None:
    model, expected = net(), net()
    for each in (model, expected):
        each.body[0].requires_grad_(False)
    meta_backward(model, recipes.joint(layer="body"), episodes(), LOSSES)
    meta_backward(expected, recipes.joint(), episodes(), LOSSES)
    assert model.body[0].weight.grad is None
    same(grads(model), grads(expected))


def test_one_task_alone() -> None:
    model, expected = net(), net()
    data = {"size": episodes()["size"]}
    meta_backward(model, recipes.joint(layer="body"), data, LOSSES)
    meta_backward(expected, recipes.joint(), data, LOSSES)
    same(grads(model), grads(expected))


def test_a_deeper_module_is_named_by_its_path() -> None:
    model, expected = net(), net()
    meta_backward(model, recipes.joint(layer="body.3"), episodes(), LOSSES)
    meta_backward(expected, recipes.joint(layer="body"), episodes(), LOSSES)
    same(grads(model), grads(expected))


class Twice(nn.Module):
    """Its body runs once for each task asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.heads = nn.ModuleDict({name: nn.Linear(5, width) for name, width in OUTPUTS.items()})

    def forward(self, x: Tensor, task: Any = None) -> Any:
        if isinstance(task, str):
            return self.heads[task](self.body(x))
        return {name: self(x, name) for name in task}


class Neck(nets.NamedHeads):
    """All tasks go through a layer behind the body."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 5), 5, OUTPUTS)
        self.neck = nn.Linear(5, 5)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        features = self.neck(self.body(*inputs))
        return {name: self.heads[name](features) for name in task_names}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def refused(model: nn.Module, data: Any, words: str, losses: Any = LOSSES, at: str = "body") -> None:
    with pytest.raises(ValueError, match=words):
        meta_backward(model.double(), recipes.joint(layer=at), data, losses)
    assert not grads(model)
    assert all(not module._forward_hooks for module in model.modules())


def test_a_module_that_is_not_there() -> None:
    for at in ("trunk", ""):
        refused(
            net(),
            episodes(),
            f"layer='{at}' names no module of NamedHeads; it has 'body', 'heads'",
            at=at,
        )


def test_inputs_of_their_own() -> None:
    data = episodes()
    data["size"] = Episode(None, Batch(data["size"].query.x.clone(), data["size"].query.y))
    refused(
        net(),
        data,
        "task 'size' has a different input.*the same query.x object to all tasks, or use layer=None",
    )


def test_a_task_that_adapts() -> None:
    data = episodes()
    data["slant"] = Episode(data["slant"].query, data["slant"].query)
    with pytest.raises(ValueError, match="task 'slant' has a support set and adapts"):
        meta_backward(net(), recipes.maml(layer="body"), data, LOSSES)


def test_alike_tasks() -> None:
    family = tasks.Sinusoid()
    data = family.sample(3, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="layer='body' is for named tasks that share one input"):
        meta_backward(nets.mlp(1, 8, 1), recipes.maml(layer="body"), data, family.loss)


def test_a_module_that_runs_more_than_once() -> None:
    refused(Twice(), episodes(), "layer='body' ran 3 times in one pass")


def test_parameters_that_all_tasks_use_behind_the_features() -> None:
    refused(Neck(), episodes(), r"all tasks use neck\.weight, neck\.bias outside of layer='body'")
    model, expected = Neck().double(), Neck().double()
    expected.load_state_dict(model.state_dict())
    meta_backward(model, recipes.joint(layer="neck"), episodes(), LOSSES)
    meta_backward(expected, recipes.joint(), episodes(), LOSSES)
    same(grads(model), grads(expected))


def test_features_that_are_not_one_tensor() -> None:
    class Model(nets.NamedHeads):
        def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
            return {name: self.heads[name](self.body(*inputs)[0]) for name in task_names}

    refused(
        Model(Pair(), 5, OUTPUTS),
        episodes(),
        "layer='body' returns a tuple; use a module that returns",
    )


def test_a_body_that_does_not_learn() -> None:
    model = net()
    model.body.requires_grad_(False)
    refused(model, episodes(), "the output of layer='body' depends on no trainable parameter")


def test_a_task_that_does_not_look_at_the_features() -> None:
    losses = {**LOSSES, "size": lambda output, y: y.abs().mean()}
    words = r"objectives of tasks \['size'\] do not depend on the output of 'body'"
    refused(net(), episodes(), words, losses)


@pytest.mark.parametrize("name", ["AdaTask", "DBMTL", "ExcessMTL"])
def test_aggregators_that_remember_single_parameters(name: str) -> None:
    aggregator = getattr(aggregators, name)()
    for each in (aggregator, aggregators.Rescaled(aggregator)):
        with pytest.raises(ValueError, match=f"{each.name} remembers .* layer='body', belong to other ex"):
            recipes.joint(aggregator=each, layer="body")
