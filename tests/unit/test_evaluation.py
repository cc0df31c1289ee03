"""`evaluate` and `adaptation_curve`."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Metric,
    adaptation_curve,
    adapters,
    engines,
    evaluate,
    nets,
    recipes,
    rules,
)
from metamtl.metrics import accuracy, mse
from metamtl.recipes import Recipe

ENGINES = [engines.Loop(), engines.Vmap(), engines.Vmap(chunk_size=2)]
METRICS = {"accuracy": accuracy, "loss": Metric(F.cross_entropy, higher_is_better=False)}


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nets.mlp(4, 8, 3).double()


def episode(tasks: int = 5) -> Episode:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(tasks, 12, 4, generator=rng, dtype=torch.float64)
    y = torch.arange(3).repeat(4).expand(tasks, -1)
    x = x + 2 * F.one_hot(y, 4)
    return Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))


RECIPES = {
    "joint": recipes.joint(),
    "maml": recipes.maml(3, 0.5),
    "protonet": recipes.protonet(),
    "proto-maml": Recipe(adapters.Chain(adapters.Prototype(), adapters.Gradient(3, 0.1))),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("engine", [None, *ENGINES], ids=repr)
def test_the_curve_ends_where_evaluate_does(name: str, engine: engines.Engine | None) -> None:
    args = (model(), RECIPES[name], episode(), F.cross_entropy)
    curve = adaptation_curve(*args, metrics=METRICS, engine=engine)
    last = evaluate(*args, metrics=METRICS, engine=engine)
    assert len(curve) == {"joint": 1, "protonet": 1}.get(name, 4)
    assert curve[-1] == last
    assert last["loss"] == evaluate(*args, engine=engine)


def test_the_curve_begins_at_the_start_and_each_stage_is_a_run_of_so_many_steps() -> None:
    net, data = model(), episode()
    curve = adaptation_curve(net, recipes.maml(3, 0.5), data, F.cross_entropy, metrics=METRICS)
    for steps, stage in enumerate(curve):
        alone = evaluate(net, recipes.maml(steps, 0.5), data, F.cross_entropy, metrics=METRICS)
        assert stage["loss"].mean == pytest.approx(alone["loss"].mean, rel=1e-12)
    losses = [stage["loss"].mean for stage in curve]
    assert losses == sorted(losses, reverse=True)
    proto = adaptation_curve(net, RECIPES["proto-maml"], data, F.cross_entropy, metrics=METRICS)
    first = evaluate(net, recipes.protonet(), data, F.cross_entropy)
    assert proto[0]["loss"].mean == pytest.approx(first.mean, rel=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_engines_agree(name: str) -> None:
    found = [
        evaluate(model(), RECIPES[name], episode(), F.cross_entropy, metrics=METRICS, engine=e)
        for e in [None, *ENGINES]
    ]
    for one in found[1:]:
        torch.testing.assert_close(one["loss"].values, found[0]["loss"].values, rtol=1e-12, atol=0)
        assert one["accuracy"] == found[0]["accuracy"]


def test_one_value_for_each_task_and_its_direction() -> None:
    net, data = model(), episode(20)
    found = evaluate(net, recipes.joint(), data, F.cross_entropy, metrics={"accuracy": accuracy})[
        "accuracy"
    ]
    by_hand = [float((net(x).argmax(1) == y).double().mean()) for x, y in zip(*data.query)]
    assert found.n == 20 and found.values.tolist() == pytest.approx(by_hand)
    assert found.worst_decile == pytest.approx(sum(sorted(by_hand)[:2]) / 2)


def test_a_metric_of_the_whole_set_returns_a_scalar() -> None:
    def spread(output: Tensor, y: Tensor) -> Tensor:
        return output.std()

    metrics = {"spread": Metric(spread, higher_is_better=True)}
    found = evaluate(model(), recipes.joint(), episode(), F.cross_entropy, metrics=metrics)["spread"]
    assert found.n == 5


def test_named_tasks_have_an_estimate_each_over_their_examples() -> None:
    net = nets.named_heads(model(), {"case": 3, "slant": 2}).double()
    rng = torch.Generator().manual_seed(2)
    x, y = (torch.randn(9, n, generator=rng, dtype=torch.float64) for n in (4, 2))
    labels = torch.arange(9) % 3
    data = {
        "case": Episode(None, Batch(x, labels)),
        "slant": Episode(Batch(x[:5], y[:5]), Batch(x[5:], y[5:])),
    }
    losses = {"case": F.cross_entropy, "slant": F.mse_loss}
    metrics = {"case": {"accuracy": accuracy}, "slant": {"mse": mse}}
    adapted = recipes.maml(4, 0.1, adapts=("body", "heads"))
    found = evaluate(net, adapted, data, losses, metrics=metrics)
    assert found["case"]["accuracy"].n == 9 and found["slant"]["mse"].n == 4
    hits = (net(x, "case").argmax(1) == labels).double()
    assert found["case"]["accuracy"].values.tolist() == hits.tolist()
    plain = evaluate(net, adapted, data, losses)
    assert (
        plain["slant"].mean == pytest.approx(found["slant"]["mse"].mean, rel=1e-12)
        and plain["slant"].n == 1
    )
    loss = F.mse_loss(net(x[5:], "slant"), y[5:]).detach()
    assert plain["slant"].mean != pytest.approx(float(loss))
    zero = evaluate(net, recipes.maml(0, adapts="body"), data, losses)
    assert zero["slant"].mean == pytest.approx(float(loss), rel=1e-12)


def test_evaluation_touches_no_grad_and_no_generator() -> None:
    net, before = model(), torch.get_rng_state()
    for engine in ENGINES:
        evaluate(net, recipes.maml(2, 0.1), episode(), F.cross_entropy, engine=engine)
    assert all(param.grad is None for param in net.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_stored_statistics_serve_every_engine() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    net(torch.randn(50, 4, dtype=torch.float64))
    net.eval()
    found = [evaluate(net, recipes.maml(2, 0.1), episode(), F.cross_entropy, engine=e) for e in ENGINES]
    assert found[0].mean == pytest.approx(found[1].mean, rel=1e-12)


COMPILED = {
    "all": recipes.maml(3, (0.1, 0.2, 0.3)),
    "head": recipes.anil(2, 0.1),
    "a rule with a memory": Recipe(adapters.Gradient(2, 0.1, rule=rules.SGD(momentum=0.9))),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_steps_give_the_numbers_of_loop(name: str) -> None:
    """The traced graph runs; the test below generates code."""
    with mock.patch("metamtl.engines.kinds.BACKEND", "eager"):
        _same_as_loop(name)


def _same_as_loop(name: str) -> None:
    net, engine = model(), engines.Compiled(2)  # five tasks: the last chunk overlaps the one before
    args = (net, COMPILED[name], episode(), F.cross_entropy)
    expected = adaptation_curve(*args, metrics=METRICS, engine=engines.Loop())
    found = adaptation_curve(*args, metrics=METRICS, engine=engine)
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one["loss"].values, other["loss"].values, rtol=1e-10, atol=0)
        assert torch.equal(one["accuracy"].values, other["accuracy"].values)
    with torch.no_grad():
        for param in net.parameters():
            param *= 1.1
    again = evaluate(*args, engine=engine)
    torch.testing.assert_close(
        again.values, evaluate(*args, engine=engines.Loop()).values, rtol=1e-10, atol=0
    )
    assert engine.compilations == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_convolutions_and_learned_rates_give_the_numbers_of_loop() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 0)), nn.Tanh(), nn.Flatten(), nn.Linear(45, 3)
        )
    x = torch.randn(3, 6, 2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(3).repeat(2).expand(3, -1)
    data, net = Episode(Batch(x, y), Batch(x.flip(1), y.flip(1))), net.double()
    recipe = Recipe(adapters.Gradient(2, adapters.LearnedRates(net, 0.2, steps=2)))
    expected = evaluate(net, recipe, data, F.cross_entropy, engine=engines.Loop())
    engine = engines.Compiled()
    found = evaluate(net, recipe, data, F.cross_entropy, engine=engine)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-10, atol=0)
    assert engine.compilations == 1


def test_random_layers_are_left_to_vmap() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    values = []
    compiled = engines.Compiled()
    for engine in (engines.Vmap(), compiled):
        warned = (
            pytest.warns(UserWarning, match="draws random numbers") if engine is compiled else nullcontext()
        )
        with torch.random.fork_rng(), warned:
            torch.manual_seed(0)
            values.append(
                evaluate(net, recipes.maml(2, 0.1), episode(), F.cross_entropy, engine=engine).values
            )
    assert torch.equal(*values) and compiled.compilations == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_named_task_without_metrics_is_refused():
    model = nets.named_heads(nets.mlp(2, 4, 1), {"a": 1, "b": 1})
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    data = {name: Episode(None, Batch(x, y)) for name in ("a", "b")}
    losses = {name: F.mse_loss for name in data}
    with pytest.raises(ValueError, match=r"no metrics for tasks \['b'\]; there are some for a"):
        evaluate(model, recipes.joint(), data, losses, metrics={"a": {"mse": mse}})
