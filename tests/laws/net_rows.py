"""The table of sharing architectures (`ROWS`) and of bodies for the laws over them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metamtl import nets
from metamtl.functional import forward
from metamtl.objectives import Objective, l2_to_mean, penalized, query_loss

TASKS = {"a": 3, "b": 1, "c": 2}


WIDTH, B = 6, 5


Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Row:
    """One architecture over any body `x -> [B, WIDTH]`.

    `private` are the modules that hold something under each task's name, for that task alone; `uses` says
    which tasks use what stands under other prefixes. What no prefix takes, all the tasks use.
    """

    make: Callable[[Make], nn.Module]
    private: tuple[str, ...] = ("heads",)
    uses: Mapping[str, str] = field(default_factory=dict)
    objective: Objective = query_loss

    def users(self, name: str) -> set[str]:
        found = set(TASKS)
        for prefix, tasks in self.uses.items():
            found = set(tasks) if name.startswith(prefix + ".") else found
        for task in TASKS:
            found = {task} if name.startswith(tuple(f"{p}.{task}" for p in self.private)) else found
        return found


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


def vector_gate(n: int) -> nn.Module:
    return nn.Linear(WIDTH, n)


class Then(nn.Module):
    """A layer behind a body of any number of inputs."""

    def __init__(self, body: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.body, self.layer = body, layer

    def forward(self, *inputs: Any, **keywords: Any) -> Tensor:
        return self.layer(self.body(*inputs, **keywords))


def gate(body: Make) -> Callable[[int], nn.Module]:
    return lambda n: Then(body(), nn.Linear(WIDTH, n))


def branching(body: Make) -> nn.Module:
    model = nets.Branching([body, block], [2, 2], WIDTH, TASKS)
    model.sample(torch.Generator().manual_seed(3), temperature=0.7)
    return model


def cooperative(body: Make) -> nn.Module:
    model = nets.Cooperative(body(), WIDTH, TASKS)
    for listen in model.listen.parameters():  # zero at the start, where it would not be seen
        nn.init.normal_(listen)
    return model


DECODER = {**TASKS, "b": nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, 1))}


GROUPS = {"near": ["a", "b"], "far": ["c"]}


ROWS = {
    "hard": Row(lambda body: nets.NamedHeads(body(), WIDTH, TASKS)),
    "hard, a module as head": Row(lambda body: nets.NamedHeads(body(), WIDTH, copy.deepcopy(DECODER))),
    "behind a bottom": Row(
        lambda body: nets.SharedBottom(body(), nets.NamedHeads(block(), WIDTH, TASKS)), ("top.heads",)
    ),
    "soft": Row(
        lambda body: nets.SoftSharing(body, WIDTH, TASKS),
        ("towers", "heads"),
        objective=penalized(l2_to_mean("towers"), 0.3),
    ),
    "hierarchical": Row(
        lambda body: nets.Hierarchical(body(), {name: block() for name in GROUPS}, GROUPS, WIDTH, TASKS),
        uses={"middles.near": "ab", "middles.far": "c"},
    ),
    "cross-stitch": Row(
        lambda body: nets.CrossStitch(lambda: nn.Sequential(body(), block()), WIDTH, TASKS)
    ),
    "mtan": Row(lambda body: nets.MTAN([body(), block()], [WIDTH] * 2, TASKS), ("attend", "heads")),
    "mmoe": Row(
        lambda body: nets.MMoE([body() for _ in range(3)], gate(body), WIDTH, TASKS), ("gates", "heads")
    ),
    "dselect-k": Row(
        lambda body: nets.DSelectK([body() for _ in range(4)], 2, WIDTH, TASKS), ("gates", "heads")
    ),
    "dselect-k, by example": Row(
        lambda body: nets.DSelectK([body() for _ in range(4)], 2, WIDTH, TASKS, gate(body), gamma=9.0),
        ("gates", "heads"),
    ),
    "cgc": Row(
        lambda body: nets.PLE([(body, gate(body))], WIDTH, TASKS, own=2, shared=2),
        ("layers.0.own", "layers.0.gates", "heads"),
    ),
    "ple": Row(
        lambda body: nets.PLE([(body, gate(body)), (block, vector_gate)], WIDTH, TASKS),
        ("layers.0.gates", "layers.1.own", "layers.1.gates", "heads"),
    ),
    "cascade": Row(
        lambda body: nets.Cascade(body(), WIDTH, TASKS, after={"b": ["a"], "c": ["b"]}),
        (),
        uses={"heads.b": "bc", "heads.c": "c"},
    ),
    "cooperative": Row(cooperative, ("listen",)),
    "shared-private": Row(
        lambda body: nets.SharedPrivate(body(), body, WIDTH, TASKS),
        ("private", "heads"),
        uses={"discriminator": ""},
    ),
    "branching": Row(branching, ("leaves", "heads")),
}


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Average(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Two(nn.Module):
    """Takes two inputs, or keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.words = nn.Linear(4, WIDTH), nn.Embedding(9, WIDTH)

    def forward(self, numbers: Tensor, words: Tensor) -> Tensor:
        return torch.tanh(self.numbers(numbers) + self.words(words).mean(1))


PRETRAINED = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, WIDTH), nn.Tanh())


RNG = torch.Generator().manual_seed(0)


NUMBERS = torch.randn(B, 4, generator=RNG)


WORDS = torch.randint(9, (B, 7), generator=RNG)


SEQUENCE = torch.randn(B, 4, 3, generator=RNG)


BODIES: dict[str, tuple[Make, Any]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh()), NUMBERS),
    "cnn": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, WIDTH), nn.Tanh()),
        torch.randn(B, 1, 5, 5, generator=RNG),
    ),
    "lstm": (lambda: Last(nn.LSTM(3, WIDTH, batch_first=True)), SEQUENCE),
    "gru": (lambda: Last(nn.GRU(3, WIDTH, batch_first=True)), SEQUENCE),
    "transformer": (
        lambda: nn.Sequential(
            nn.Linear(3, WIDTH),
            nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True),
            Average(),
        ),
        SEQUENCE,
    ),
    "pretrained": (lambda: copy.deepcopy(PRETRAINED), NUMBERS),
    "words": (lambda: nn.Sequential(nn.Embedding(9, WIDTH), Average()), WORDS),
    "two inputs": (Two, (NUMBERS, WORDS)),
    "keywords": (Two, {"numbers": NUMBERS, "words": WORDS}),
}


def double(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: double(value) for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(double(value) for value in x)
    return x.double() if x.is_floating_point() else x


def build(row: str, body: str = "mlp") -> tuple[nn.Module, Any]:
    make, x = BODIES[body]
    return ROWS[row].make(make).double(), double(x)


def ask(model: nn.Module, x: Any, task: Any) -> Any:
    return forward(model, dict(model.named_parameters()), x, task)


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor | None]:
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    found = torch.autograd.grad(value, list(params.values()), allow_unused=True, retain_graph=True)
    return dict(zip(params, found))


each_row = pytest.mark.parametrize("row", ROWS)


each_body = pytest.mark.parametrize("body", BODIES)
