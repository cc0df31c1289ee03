"""What cannot work says what was found, why it cannot work and what to do, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    adaptation_curve,
    adapters,
    aggregators,
    engines,
    evaluate,
    meta_backward,
    recipes,
)
from metamtl.metrics import accuracy
from metamtl.recipes import Recipe

from .error_cases import CALLS, Refused, T, episode, model, named, refused

ENGINES = [engines.Loop(), engines.Vmap(), engines.Vmap(chunk_size=3)]


@pytest.mark.parametrize("call", CALLS)
def test_a_prefix_that_names_no_parameter(call: Refused) -> None:
    net = nn.Sequential()
    net.encoder, net.classifier = nn.Linear(2, 4), nn.Linear(4, 3)
    with refused(net, r"adapts='head' names no parameter of Sequential", "'classifier', 'encoder'"):
        call(net, recipes.anil(), episode(), F.cross_entropy)


def test_a_prefix_that_names_no_parameter_among_several_and_without_the_outer_loop() -> None:
    net = model()
    with refused(net, r"adapts='hea' names no parameter of MLP; it has 'body', 'head'"):
        adapters.Gradient(adapts=["head", "hea"])(net, episode()[0].support, F.cross_entropy)
    with refused(net, r"adapts='tail'"):
        list(adapters.Gradient(adapts="tail").path(net, episode()[0].support, F.cross_entropy))
    with refused(net, r"head='tail' names no parameter"):
        meta_backward(net, recipes.mtl([0], 5, head="tail"), episode(), F.cross_entropy)


@pytest.mark.parametrize("call", CALLS)
def test_a_prefix_of_frozen_parameters_alone(call: Refused) -> None:
    net = model()
    net.head.requires_grad_(False)
    with refused(net, "adapts='head' names only frozen parameters of MLP", r"requires_grad_\(True\)"):
        call(net, recipes.anil(), episode(), F.cross_entropy)


def test_a_model_with_nothing_to_learn() -> None:
    net = model().requires_grad_(False)
    with refused(net, "MLP has no trainable parameter", r"requires_grad_\(True\)"):
        meta_backward(net, recipes.joint(), episode(), F.cross_entropy)


@pytest.mark.parametrize("call", CALLS)
def test_support_and_query_on_two_devices(call: Refused) -> None:
    net, data = model(), episode()
    apart = Episode(Batch(*(leaf.to("meta") for leaf in data.support)), data.query)
    with refused(net, "support is on meta, query on cpu", r"episode\.to\(device\)"):
        call(net, recipes.maml(), apart, F.cross_entropy)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("take", [lambda x: x[:3], lambda x: x[..., :1], lambda x: x.double()])
def test_support_and_query_of_two_shapes(call: Refused, take: Callable[[Tensor], Tensor]) -> None:
    net, data = model(), episode()
    x = take(data.support.x)
    shapes = [re.escape(str(list(each.shape))) for each in (x, data.query.x)]
    with refused(net, *shapes, "only the number of examples may differ"):
        call(net, recipes.maml(), Episode(Batch(x, data.support.y[: len(x)]), data.query), F.cross_entropy)


@pytest.mark.parametrize("call", CALLS)
def test_inputs_and_targets_of_two_lengths(call: Refused) -> None:
    net, data = model(), episode()
    short = Episode(data.support, Batch(data.query.x, data.query.y[:, :5]))
    with refused(net, "query: x and y do not fit together", r"\[4, 6, 2\]", r"\[4, 5\]"):
        call(net, recipes.maml(), short, F.cross_entropy)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
@pytest.mark.parametrize("recipe", [recipes.joint(), recipes.maml()])
def test_labels_too_high_for_the_head(
    engine: engines.Engine, call: Refused, loss: Any, recipe: Recipe
) -> None:
    net, data = model(), episode(torch.tensor([0, 1, 2, 3, 0, 1]).expand(T, -1))
    with refused(net, "labels reach up to 3", "3 classes", "labels 0 to 2", "widen the head"):
        call(net, recipe, data, loss, engine=engine)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_more_ways_than_the_head_has(engine: engines.Engine) -> None:
    net = model()
    with refused(net, "labels reach up to 4", "3 classes"):
        meta_backward(net, recipes.maml(), episode(ways=5), F.cross_entropy, engine=engine)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("ways", [None, 3])
def test_labels_below_zero(engine: engines.Engine, call: Refused, ways: int | None) -> None:
    net, data = model(), episode(torch.tensor([0, 1, 2, -1, 0, 1]).expand(T, -1), ways=ways)
    with refused(net, "labels reach down to -1", "counted from 0"):
        call(net, recipes.maml(), data, F.cross_entropy, engine=engine)


def test_labels_that_the_loss_ignores_are_no_error() -> None:
    net, labels = model(), torch.tensor([0, 1, 2, -100, 0, 1]).expand(T, -1)
    meta_backward(net, recipes.maml(), episode(labels), F.cross_entropy)
    ignoring = nn.CrossEntropyLoss(ignore_index=9)
    meta_backward(net, recipes.maml(), episode(labels.where(labels >= 0, 9)), ignoring)


@pytest.mark.parametrize("engine", [None, engines.Vmap(2), engines.Loop()], ids=repr)
def test_running_statistics_stay_as_they_are(engine: engines.Engine | None) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    meta_backward(net, recipes.maml(), episode(), F.cross_entropy, engine=engine)
    evaluate(net, recipes.maml(), episode(), F.cross_entropy, engine=engine)
    meta_backward(net.eval(), recipes.maml(), episode(), F.cross_entropy, engine=engine)
    assert all(torch.equal(before[name], buffer) for name, buffer in net.named_buffers())
    assert net[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
class TestNotFinite:
    """The tasks are named, and the inner step where it began."""

    def regression(self) -> tuple[nn.Module, Episode]:
        x = torch.randn(T, 6, 2, generator=torch.Generator().manual_seed(0))
        y = x[..., :1].clone()
        return model(1), Episode(Batch(x, y), Batch(x.clone(), y.clone()))

    def test_in_a_query_set(self, engine: engines.Engine) -> None:
        net, data = self.regression()
        data.query.y[1, 3] = torch.nan
        data.query.y[2, 0] = torch.inf
        words = [
            r"loss of tasks \[1, 2\] of 4",
            r"nan, inf",
            "Task 1",
            "stays finite",
            "query set does not",
        ]
        with refused(net, *words, r"Nothing was added to \.grad", error=FloatingPointError):
            meta_backward(net, recipes.maml(2), data, F.mse_loss, engine=engine)

    def test_in_a_support_set(self, engine: engines.Engine) -> None:
        net, data = self.regression()
        data.support.x[3, 0] = torch.nan
        words = [r"tasks \[3\] of 4", "Task 3: the support loss is nan after 0 inner steps"]
        with refused(net, *words, error=FloatingPointError):
            meta_backward(net, recipes.maml(2), data, F.mse_loss, engine=engine)

    def test_from_a_rate_that_is_too_high(self, engine: engines.Engine) -> None:
        net, data = self.regression()
        words = [r"tasks \[0, 1, 2, 3\]", "Task 0: the support loss is (inf|nan) after 2 inner steps"]
        with refused(net, *words, "learning rates", error=FloatingPointError):
            meta_backward(net, recipes.maml(4, [1e-3, 1e20, 1e20, 0.1]), data, F.mse_loss, engine=engine)

    def test_without_a_support_set(self, engine: engines.Engine) -> None:
        net, data = self.regression()
        data.query.x[0] = torch.nan
        with refused(net, r"loss of tasks \[0\] of 4", error=FloatingPointError):
            meta_backward(net, recipes.joint(), Episode(None, data.query), F.mse_loss, engine=engine)

    def test_in_the_gradient_alone(self, engine: engines.Engine) -> None:
        net, data = self.regression()

        def root(output: Tensor, y: Tensor) -> Tensor:
            return (output - y).abs().sqrt().mean() + ((y == 9).any() * output.sum() * 0).abs().sqrt()

        data.query.y[2] = 9.0
        with refused(net, r"the gradient of tasks \[.*2.*\] of 4 is not finite", error=FloatingPointError):
            meta_backward(net, recipes.joint(), data, root, engine=engine)

    def test_of_a_class_without_a_support_example(self, engine: engines.Engine) -> None:
        net, data = model(), episode()
        missing = Batch(data.support.x, data.support.y.clone().where(torch.arange(6) != 2, 0))
        missing.y[:, 5] = 1
        with refused(net, r"tasks \[0, 1, 2, 3\]", error=FloatingPointError):
            meta_backward(
                net, recipes.protonet(), Episode(missing, data.query), F.cross_entropy, engine=engine
            )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "adapter", [adapters.Gradient(), adapters.Prototype(), adapters.Chain(adapters.Prototype())], ids=repr
)
@pytest.mark.parametrize("engine", [None, *ENGINES], ids=repr)
def test_an_adapter_that_needs_a_support_set(
    call: Refused, adapter: adapters.Adapter, engine: engines.Engine | None
) -> None:
    net, data = model(), episode()
    kind = "Prototype" if isinstance(adapter, adapters.Chain) else type(adapter).__name__
    with refused(net, f"{kind} adapts to a support set", "support=None", r"Shared\(\)"):
        call(net, Recipe(adapter), Episode(None, data.query), F.cross_entropy, engine=engine)


def test_named_tasks_of_which_none_has_a_support_set() -> None:
    net, data, losses = named()
    with refused(net, "Gradient adapts to support sets", "'case', 'slant'", r"Shared\(\)"):
        meta_backward(net, recipes.maml(), data, losses)


def test_the_curve_refuses_as_evaluate_does() -> None:
    net = model()
    with refused(net, "adapts='tail' names no parameter"):
        adaptation_curve(net, recipes.maml(adapts="tail"), episode(), F.cross_entropy, metrics={})


def test_modules_that_prototypes_need() -> None:
    net = model()
    with refused(net, "body='encoder' names no module of MLP; it has 'body', 'head'"):
        meta_backward(net, recipes.protonet(body="encoder"), episode(), F.cross_entropy)
    net.head = nn.Linear(5, 3, bias=False)
    with refused(net, "head.bias", "Linear has no bias", "bias=True"):
        meta_backward(net, recipes.protonet(), episode(), F.cross_entropy)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: engines.Vmap(chunk_size=0), r"chunk_size=0.*at least 1.*None"),
        (lambda: adapters.Gradient(steps=-1), r"steps=-1.*cannot be negative"),
        (lambda: adapters.Gradient(steps=3, lr=[0.1, 0.2]), r"2 rates for 3 steps"),
        (lambda: adapters.Gradient(steps=0, lr=[0.1]), r"1 rates for 0 steps"),
        (
            lambda: adapters.Gradient(differentiation="second"),
            r"differentiation='second' is not one of 'exact'.*'first_order'",
        ),
        (lambda: adapters.Chain(), r"at least one adapter.*Shared\(\)"),
    ],
)
def test_bad_arguments_are_refused_where_they_are_given(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_an_aggregator_that_is_not_there() -> None:
    words = r"no 'MGAD'; it has .*CAGrad.*MGDA.*UPGrad"
    with pytest.raises(AttributeError, match=words):
        aggregators.MGAD  # noqa: B018
    with pytest.raises(AttributeError, match=r"TorchJD has no aggregator 'MGAD'; it has .*MGDA"):
        aggregators.TorchJD("MGAD")
    assert not hasattr(aggregators, "__wrapped__")


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_labels_too_high_are_no_silent_zero_of_a_metric(engine: engines.Engine) -> None:
    """An accuracy would count a class that the head does not have as wrong."""
    net, data = model(), episode(torch.tensor([0, 1, 2, 3, 0, 1]).expand(T, -1))
    with refused(net, "metric 'accuracy'", "labels range from 0 to 3", "scores for 3 classes"):
        evaluate(net, recipes.joint(), data, F.cross_entropy, metrics={"accuracy": accuracy}, engine=engine)
