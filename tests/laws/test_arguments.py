"""An argument of another kind is an error before anything is computed, and the error names the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Recipe,
    adapters,
    aggregators,
    engines,
    evaluate,
    meta_backward,
    nets,
    recipes,
)

LOSSES: dict[str, Any] = {"a": F.mse_loss, "b": F.mse_loss}


def network() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential()
        model.body, model.head = nn.Sequential(nn.Linear(2, 3), nn.Tanh()), nn.Linear(3, 2)
        return model.double()


def named_network() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nets.NamedHeads(nn.Sequential(nn.Linear(2, 3), nn.Tanh()), 3, {"a": 2, "b": 2}).double()


def episode() -> Episode:
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 6, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    return Episode(Batch(x[:, :3], y[:, :3]), Batch(x[:, 3:], y[:, 3:]))


def named() -> dict[str, Episode]:
    x, y = episode().query.x[0], episode().query.y[0]
    return {"a": Episode(None, Batch(x, y)), "b": Episode(None, Batch(x, -y))}


def loader() -> Any:
    return torch.utils.data.DataLoader([(torch.zeros(2), torch.zeros(2))])  # type: ignore[arg-type]


# What is wrong with a call, by argument; words of the message: what was given, and what to give.
CALLS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "engine: a string": ({"engine": "vmap"}, ["engine", "vmap", "engines.Vmap()"]),
    "engine: a class": ({"engine": engines.Vmap}, ["engine", "Vmap()"]),
    "episodes: a tuple": ({"episodes": (torch.zeros(3, 2), torch.zeros(3, 2))}, ["tuple", "Episode"]),
    "episodes: a Batch": ({"episodes": episode().query}, ["Batch", "Episode"]),
    "episodes: an empty list": ({"episodes": []}, ["list", "empty"]),
    "episodes: a list of tensors": ({"episodes": [torch.zeros(3, 2)]}, ["Tensor", "Episode"]),
    "episodes: a DataLoader": ({"episodes": loader()}, ["DataLoader", "Episode"]),
    "recipe: a function": ({"recipe": recipes.maml}, ["maml", "recipes.maml()"]),
    "recipe: an adapter": ({"recipe": adapters.Shared()}, ["Shared", "Recipe(Shared())"]),
    "recipe: an aggregator": ({"recipe": aggregators.Mean()}, ["Mean", "Recipe"]),
    "recipe: a string": ({"recipe": "maml"}, ["'maml'", "recipes"]),
    "loss: a class": ({"loss": nn.MSELoss}, ["MSELoss", "MSELoss()"]),
    "loss: a string": ({"loss": "mse"}, ["'mse'", "loss"]),
    "loss: none": ({"loss": None}, ["None", "loss"]),
    "loss: without reduction": ({"loss": nn.MSELoss(reduction="none")}, ["reduction", "'mean'"]),
    "loss: a vector": (
        {"loss": lambda output, y: (output - y).square().mean(-1)},
        ["scalar", "mean()"],
    ),
    "loss: a number": ({"loss": lambda output, y: 1.0}, ["float", "scalar"]),
    "model: a class": ({"model": nn.Linear}, ["Linear", "Linear(...)"]),
    "model: a function": ({"model": torch.sin}, ["sin", "nn.Module"]),
}
calls = pytest.mark.parametrize("name", CALLS)


def assert_told(call: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


@calls
@pytest.mark.parametrize("function", [meta_backward, evaluate])
def test_an_argument_of_another_kind(name: str, function: Any) -> None:
    wrong, words = CALLS[name]
    arguments = {
        "model": network(),
        "recipe": recipes.maml(1, 0.1),
        "episodes": episode(),
        "loss": F.mse_loss,
        "engine": engines.Loop(),
        **wrong,
    }
    assert_told(lambda: function(**arguments), words)
    params = arguments["model"].parameters() if isinstance(arguments["model"], nn.Module) else []
    assert all(param.grad is None for param in params)


OPTIONS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "steps, a float": (lambda: recipes.maml(steps=1.0), ["steps=1.0", "int"]),  # type: ignore[arg-type]
    "steps, a string": (lambda: recipes.maml(steps="5"), ["steps='5'", "int"]),  # type: ignore[arg-type]
    "first_order": (lambda: recipes.maml(first_order=True), ["first_order"]),
    "a misspelled option": (lambda: recipes.maml(inner_lr=0.1), ["inner_lr"]),
    "adapts of anil": (
        lambda: meta_backward(network(), recipes.anil(1, 0.1, adapts="top"), episode(), F.mse_loss),
        ["'top'", "'head'"],
    ),
    "adapts of boil": (
        lambda: meta_backward(network(), recipes.boil(1, 0.1, adapts="trunk"), episode(), F.mse_loss),
        ["'trunk'", "'body'"],
    ),
    "a recipe of a class": (lambda: Recipe(adapters.Shared, aggregators.Mean()), ["Shared", "Shared(...)"]),  # type: ignore[arg-type]
    "an aggregator's class": (lambda: recipes.joint(aggregator=aggregators.Mean), ["Mean", "Mean(...)"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_another_kind(name: str) -> None:
    make, words = OPTIONS[name]
    assert_told(make, words)


VMAP_CANNOT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one_hot": lambda output, y: F.mse_loss(output, F.one_hot((0 * y[..., 0] + 1).long()).to(output)),
    "float": lambda output, y: float(y.abs().mean()) * F.mse_loss(output, y),
    "mask": lambda output, y: (output - y)[y > 0].square().mean(),
    "if": lambda output, y: F.mse_loss(output, y) * (2 if y.mean() > 0 else 1),
}


@pytest.mark.parametrize("name", VMAP_CANNOT)
@pytest.mark.parametrize("tasks", ["meta-batch", "named"])
@pytest.mark.parametrize("function", [meta_backward, evaluate])
def test_a_loss_that_vmap_cannot_run(function: Any, tasks: str, name: str) -> None:
    """The error of `Vmap` says that `Loop` can; so for named tasks, whose `engine=` is not ignored."""
    loss: Any = VMAP_CANNOT[name]
    model, data = (network(), episode()) if tasks == "meta-batch" else (named_network(), named())
    loss = loss if tasks == "meta-batch" else dict.fromkeys("ab", loss)
    # An evaluation computes the query loss outside of any transform, so only a support loss matters.
    adapted = function is evaluate and tasks == "meta-batch"
    recipe = recipes.fomaml(1, 0.1) if adapted else recipes.joint()
    with pytest.raises((RuntimeError, ValueError, TypeError), match=r"Loop\(\)"):
        function(model, recipe, data, loss, engine=engines.Vmap())
    assert all(param.grad is None for param in model.parameters())
    function(model, recipe, data, loss, engine=engines.Loop())


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("function", [meta_backward, evaluate])
@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap(), None], ids=repr)
@pytest.mark.parametrize("tasks", ["meta-batch", "named"])
def test_a_wrapped_model(tasks: str, engine: Any, function: Any, group: None) -> None:
    """It would not be synchronized, as its hooks are never called."""
    wrap = nn.parallel.DistributedDataParallel
    words = ["DistributedDataParallel", ".module"]
    if tasks == "named":
        model = wrap(named_network())
        assert_told(lambda: function(model, recipes.joint(), named(), LOSSES, engine=engine), words)
    else:
        model = wrap(network())
        recipe = recipes.maml(1, 0.1)
        assert_told(lambda: function(model, recipe, episode(), F.mse_loss, engine=engine), words)


@pytest.mark.parametrize("wrap", [nn.DataParallel])
def test_another_wrapper(wrap: Any) -> None:
    model = wrap(network())
    call = lambda: meta_backward(model, recipes.maml(1, 0.1), episode(), F.mse_loss)  # noqa: E731
    assert_told(call, ["DataParallel", ".module"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute")
@pytest.mark.parametrize("at", [None, "body"])
def test_a_body_that_torch_compiles(at: str | None) -> None:
    model = named_network()
    reference = deepcopy(model)
    model.body = torch.compile(model.body, backend="aot_eager")
    for net in (model, reference):
        for _ in range(2):
            meta_backward(net, recipes.joint(layer=at), named(), LOSSES)
    grads, expected = ([p.grad for p in net.parameters()] for net in (model, reference))
    assert len(grads) == len(expected) and all(g is not None for g in expected)
    assert all(torch.allclose(g, e, 1e-10, 1e-14) for g, e in zip(grads, expected))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute")
@pytest.mark.parametrize("recipe", [recipes.joint(), recipes.fomaml(2, 0.1)], ids=["joint", "fomaml"])
def test_a_compiled_part_of_a_meta_batch(recipe: Recipe) -> None:
    """`Loop` runs it; its second derivative does not exist, so first order."""
    model = network()
    reference = deepcopy(model)
    model.body = torch.compile(model.body, backend="aot_eager")
    for net in (model, reference):
        meta_backward(net, recipe, episode(), F.mse_loss, engine=engines.Loop())
    grads, expected = ([p.grad for p in net.parameters()] for net in (model, reference))
    assert all(g is not None for g in expected)
    assert all(g is not None and torch.allclose(g, e, 1e-10, 1e-14) for g, e in zip(grads, expected))
