"""Models that share parameters in every form, and what a call on them must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, engines, meta_backward

WIDTH = 3


class Smooth(nn.Module):
    """`x sigmoid(slope x)`, an activation with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.slope * x)


class Apart(nn.Module):
    """No parameter is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Twice(nn.Module):
    """One layer under two names, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH)
        self.b = self.a
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Tied(Apart):
    """The weight of one layer is that of another, by assignment."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (layer for layer in self.body if isinstance(layer, nn.Linear))
        second.weight = first.weight


class TiedAcross(Tied):
    """The weight of the head is one of the body's."""

    def __init__(self) -> None:
        super().__init__()
        first, _ = (layer for layer in self.body if isinstance(layer, nn.Linear))
        self.head.weight = first.weight


class Around(nn.Module):
    """A body built around another registered module; its stages are declared."""

    sequence = ("body", "head")

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(WIDTH, WIDTH)
        self.body = nn.Sequential(self.backbone, nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Renamed(nn.Module):
    """The body is the second name of a module, the head the second name of another."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.classifier = nn.Linear(WIDTH, WIDTH)
        self.body, self.head = self.features, self.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Listed(nn.Module):
    """A module in a ModuleList and in an attribute, and an activation with a parameter used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.first = self.layers[0]
        self.act = Smooth()
        self.body = nn.Sequential(self.first, self.act, self.layers[1], self.act)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.layers[1](self.act(self.layers[0](x))))
        return self.head(hidden) + self.first(hidden)


class Words(nn.Module):
    """A language model: the output layer's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, WIDTH)
        self.body = nn.Sequential(self.embedding, nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, 5)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True)
class Kind:
    """A model, and the prefixes under which its head and its body can be given."""

    make: Callable[[], nn.Module]
    heads: tuple[str, ...] = ("head",)
    bodies: tuple[str, ...] = ("body",)


KINDS = {
    "no sharing": Kind(Apart),
    "one layer under two names": Kind(Twice, bodies=("a", "b")),
    "a tied weight": Kind(Tied),
    "a weight tied between head and body": Kind(TiedAcross),
    "a body around another module": Kind(Around, bodies=("body", "backbone")),
    "body and head as second names": Kind(
        Renamed, heads=("head", "classifier"), bodies=("body", "features")
    ),
    "a list, an attribute and a shared activation": Kind(Listed, bodies=("body", "first", "layers.0")),
    "embedding and output": Kind(Words, bodies=("body", "embedding")),
}


@dataclass
class Case:
    """A model, two tasks with three examples each, a loss, and the model under plain autograd."""

    kind: Kind
    model: nn.Module
    episode: Episode
    loss: Any
    net: Any

    def expected(self, adapt: Any, extra: Any = ()) -> list[Tensor]:
        return self.net.gradient(self.episode, self.loss, adapt, extra)

    def check(self, recipe: Recipe, engine: engines.Engine, expected: Sequence[Tensor]) -> None:
        """One call gives the expected gradient and leaves the model's parameters where they were."""
        before = registered(self.model)
        values = {name: param.detach().clone() for name, param in self.model.named_parameters()}
        meta_backward(self.model, recipe, self.episode, self.loss, engine=engine)
        after = registered(self.model)
        changed = [f"{type(m).__name__}.{n}" for (m, n), p in after.items() if p is not before[m, n]]
        assert not changed, f"other objects stand at {changed}"
        assert all(torch.equal(param, values[name]) for name, param in self.model.named_parameters())
        params = [*self.model.named_parameters(), *recipe.adapter.named_parameters(prefix="adapter")]
        lost = [name for (name, p), g in zip(params, expected, strict=True) if p.grad is None and g.any()]
        assert not lost, f"no .grad for {lost}"
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in params]
        result, reference = (torch.cat([g.flatten() for g in part]) for part in (grads, expected))
        assert reference.norm() > 1e-3
        assert float((result - reference).norm() / reference.norm()) <= 1e-10


def registered(model: nn.Module) -> dict[tuple[nn.Module, str], Any]:
    """Every place of every parameter, and the object that stands there."""
    return {(m, name): param for m in model.modules() for name, param in m._parameters.items()}


def build(name: str, plain: Any) -> Case:
    kind, rng = KINDS[name], torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind.make().double()
    if kind.make is Words:
        x, y = (torch.randint(5, (2, 6), generator=rng) for _ in range(2))
        loss: Any = F.cross_entropy
    else:
        x = torch.randn(2, 6, WIDTH, generator=rng, dtype=torch.float64)
        y, loss = torch.randn(2, 6, WIDTH, generator=rng, dtype=torch.float64), F.mse_loss
    episode = Episode(Batch(x[:, :3], y[:, :3]), Batch(x[:, 3:], y[:, 3:]))
    return Case(kind, model, episode, loss, plain(model))


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, plain: Any) -> Case:
    return build(request.param, plain)


PARTS = [(name, prefix) for name, kind in KINDS.items() for prefix in (*kind.heads, *kind.bodies)]


@pytest.fixture(params=PARTS, ids=[": ".join(pair) for pair in PARTS])
def part(request: pytest.FixtureRequest, plain: Any) -> tuple[Case, str]:
    """A case, and one of the names of its head or body."""
    name, prefix = request.param
    return build(name, plain), prefix


@pytest.fixture(params=[engines.Loop(), engines.Vmap()], ids=repr)
def engine(request: pytest.FixtureRequest) -> engines.Engine:
    return request.param
