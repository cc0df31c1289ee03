"""After a call a model, a recipe and an engine can be copied, saved and used; they hold nothing of it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, evaluate, meta_backward, recipes, rules

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


class Net(nn.Module):
    """A small net; the classes below leave something behind in their forward pass."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)
        self.left: Any = None

    def leave(self, h: Tensor) -> None:
        """What stays behind of the features."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        self.leave(h)
        return self.head(h)


class Features(Net):
    def leave(self, h: Tensor) -> None:
        self.left = h


class FreshAttribute(Net):
    def leave(self, h: Tensor) -> None:
        self.features = h


class Detached(Net):
    def leave(self, h: Tensor) -> None:
        self.left = h.detach()


class InAList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.left = []

    def leave(self, h: Tensor) -> None:
        self.left.append(h)


class InADict(Net):
    def __init__(self) -> None:
        super().__init__()
        self.left = {}

    def leave(self, h: Tensor) -> None:
        self.left["h"] = (h, h.mean())


class InAChild(Net):
    def leave(self, h: Tensor) -> None:
        self.body.features = h  # type: ignore[assignment]


class Counter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.left = 0

    def leave(self, h: Tensor) -> None:
        self.left += 1


LEAVING = [Features, FreshAttribute, Detached, InAList, InADict, InAChild, Counter]
ENGINES: dict[str, Callable[[], engines.Engine]] = {
    "loop": engines.Loop,
    "vmap": engines.Vmap,
    "compiled": engines.Compiled,
    "auto": engines.Auto,
}


@pytest.fixture(autouse=True)
def no_generated_code() -> Iterator[None]:
    """What is compiled is traced and guarded as always, and runs without generated code."""
    with mock.patch("metamtl.engines.kinds.BACKEND", "eager"):
        yield


def episode() -> Episode:
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 6, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    ids = torch.tensor([[0, 1], [1, 2]])
    return Episode(Batch(x[:, :3], y[:, :3]), Batch(x[:, 3:], y[:, 3:]), ids)


def step(model: nn.Module, recipe: Recipe, engine: engines.Engine) -> Tensor:
    params = [*model.parameters(), *recipe.adapter.parameters()]
    for param in params:
        param.grad = None
    meta_backward(model, recipe, episode(), F.mse_loss, engine=engine)
    return torch.cat([p.grad.flatten() for p in params if p.grad is not None])


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a module's attributes, or in a container."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from tensors(vars(value))
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


@pytest.mark.slow
@pytest.mark.parametrize("make", LEAVING)
@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # an engine may say that it falls back
def test_what_forward_leaves_behind(kind: str, make: type[Net]) -> None:
    plain, model, engine = Net().double(), make().double(), ENGINES[kind]()
    recipe, x = recipes.maml(1, 0.2), torch.ones(3, 2, dtype=torch.float64)
    keys = set(vars(model)), set(vars(model.body))
    expected = step(plain, recipe, engines.Loop())
    for _ in range(2):
        assert torch.allclose(step(model, recipe, engine), expected, 1e-10, 1e-14)
        evaluate(model, recipe, episode(), F.mse_loss, engine=engine)
        functorch = torch._C._functorch  # type: ignore[attr-defined]
        assert not any(functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors(model))
        assert not any(tensor.grad_fn is not None for tensor in tensors(model))
        copy = deepcopy(model)
        torch.save(model, io.BytesIO())
        with torch.no_grad():
            assert torch.equal(copy(x), plain(x))
    added = (set(vars(model)) - keys[0]) | (set(vars(model.body)) - keys[1])
    assert not {"features", "left"} & added
    if make in (Features, Detached):
        assert model.left is None
    if make is Counter:
        assert model.left == 0


RULES = ["Descent", "SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta"]
RECIPES: dict[str, Callable[[nn.Module], Recipe]] = {
    "joint": lambda model: recipes.joint(),
    "table": lambda model: Recipe(adapters.HeadTable(range(3), 3)),
    "anil": lambda model: recipes.anil(2, 0.1),
    "two prefixes": lambda model: recipes.maml(2, [0.1, 0.2], adapts=("body.bias", "head")),
    "checkpointed": lambda model: recipes.maml(2, 0.1, differentiation="checkpointed"),
    "first_order": lambda model: recipes.fomaml(2, 0.1),
    "implicit": lambda model: recipes.imaml(2, 0.1),
    "meta-sgd": lambda model: recipes.metasgd(model, 2, 0.1),
    "rates of steps": lambda model: recipes.lslr(model, 2, 0.1),
    "reptile": lambda model: recipes.reptile(2, 0.1),
    "chain": lambda model: Recipe(
        adapters.Chain(adapters.HeadTable(range(3), 3), adapters.Gradient(1, 0.1))
    ),
    **{
        f"rule {name}": lambda model, name=name: recipes.maml(2, 0.1, rule=getattr(rules, name)())  # type: ignore[misc]
        for name in RULES
    },
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_recipe(name: str, how: str) -> None:
    """A copy gives the same gradient, and shares no parameter."""
    model, engine = Net().double(), engines.Loop()
    recipe = RECIPES[name](model)
    recipe.adapter.double()
    expected = step(model, recipe, engine)
    if how == "deepcopy":
        copy = deepcopy(recipe)
    elif how == "pickle":
        copy = pickle.loads(pickle.dumps(recipe))
    else:
        buffer = io.BytesIO()
        torch.save(recipe, buffer)
        buffer.seek(0)
        copy = torch.load(buffer, weights_only=False)
    assert not {id(p) for p in copy.adapter.parameters()} & {id(p) for p in recipe.adapter.parameters()}
    assert repr(copy.adapter) == repr(recipe.adapter)
    assert torch.equal(step(model, copy, engine), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_an_engine_that_has_been_used(kind: str, how: str) -> None:
    model, recipe, engine = Net().double(), recipes.maml(1, 0.2), ENGINES[kind]()
    for _ in range(12):
        expected = step(model, recipe, engine)
    evaluate(model, recipe, episode(), F.mse_loss, engine=engine)
    copy = deepcopy(engine) if how == "deepcopy" else pickle.loads(pickle.dumps(engine))
    assert repr(copy) == repr(engine)
    assert torch.allclose(step(model, recipe, copy), expected, 1e-10, 1e-14)
    assert torch.allclose(step(deepcopy(model), recipe, engine), expected, 1e-10, 1e-14)
    pickle.loads(pickle.dumps(model))
