"""An engine that times and compiles keeps no episode, no loss and no model alive, and settles soon."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, engines, evaluate, meta_backward, recipes

STEPS = 120
SETTLED = 20  # steps after which there is one choice
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


class Net(nn.Module):
    """A small net that counts its calls, or reads a weight that the training loop sets."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 4), norm or nn.Identity(), nn.Tanh())
        self.head, self.calls, self.gain, self.counts = nn.Linear(4, 2), 0, 1.0, False

    def forward(self, x: Tensor) -> Tensor:
        if self.counts:
            self.calls += 1
        return self.gain * self.head(self.body(x))


class Trainer:
    """A training loop as a class, whose loss is a method."""

    def criterion(self, output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output, y)


TRAINER = Trainer()


def counting(model: Net, step: int) -> None:
    model.counts = True


def evaluated(model: Net, step: int) -> None:
    """An ordinary forward pass between two steps, which moves running statistics."""
    model(torch.ones(3, 2))


def annealed(model: Net, step: int) -> None:
    model.gain = 1.0 / (1 + step // 40)


def idle(model: Net, step: int) -> None:
    """Nothing happens between two steps."""


# The model, the loss of each step, and what happens before it.
ROWS: dict[str, tuple[Callable[[], Net], Callable[[], Any], Callable[[Net, int], None]]] = {
    "a function": (Net, lambda: F.mse_loss, idle),
    "a lambda at every step": (Net, lambda: lambda output, y: (output - y).square().mean(), idle),
    "a module at every step": (Net, nn.MSELoss, idle),
    "a bound method": (Net, lambda: TRAINER.criterion, idle),
    "a partial at every step": (Net, lambda: partial(F.smooth_l1_loss, beta=0.5), idle),
    "a model that counts its calls": (Net, lambda: F.mse_loss, counting),
    "running statistics that move": (
        lambda: Net(nn.BatchNorm1d(4, track_running_stats=True)),
        lambda: F.mse_loss,
        evaluated,
    ),
    "an attribute that is annealed": (Net, lambda: F.mse_loss, annealed),
}


@pytest.fixture(autouse=True)
def no_generated_code() -> Iterator[None]:
    """What is compiled is traced and guarded as always, and runs without generated code."""
    with mock.patch("metamtl.engines.kinds.BACKEND", "eager"):
        yield


def sample(rng: torch.Generator) -> Episode:
    """Tensors of their own, which a view that is kept keeps too."""
    support, query = (Batch(*(torch.randn(3, 4, 2, generator=rng) for _ in range(2))) for _ in range(2))
    return Episode(support, query)


def references(episode: Episode) -> list[Any]:
    assert episode.support is not None
    return [weakref.ref(tensor) for tensor in (*episode.support, *episode.query)]


def alive(*lists: list[Any]) -> list[int]:
    """How many of each list there are. To collect garbage takes a second in a full suite."""
    gc.collect()
    return [sum(reference() is not None for reference in references) for references in lists]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("auto", name) for name in ROWS),
        *(("compiled", name) for name in list(ROWS)[5:]),
    ],
)
def test_a_long_run_keeps_nothing(kind: str, name: str) -> None:
    make, loss_of, before = ROWS[name]
    torch.manual_seed(0)
    model, recipe, rng = make(), recipes.maml(1, 0.1), torch.Generator().manual_seed(0)
    engine: Any = engines.Auto() if kind == "auto" else engines.Compiled()
    tensors: list[Any] = []
    losses: list[Any] = []
    for step in range(STEPS if kind == "auto" else 30):
        before(model, step)
        episode, loss = sample(rng), loss_of()
        tensors += references(episode)
        if not isinstance(loss, (partial, type(F.mse_loss), type(TRAINER.criterion))) or (
            "lambda" in repr(loss)
        ):
            losses.append(weakref.ref(loss))
        meta_backward(model, recipe, episode, loss, engine=engine)
        if kind == "auto" and step + 1 == SETTLED:
            assert len(engine.choices) == 1, engine.choices
    assert kind == "compiled" or len(engine.choices) == 1
    kept = alive(tensors, losses)
    assert kept[0] <= 4 and kept[1] <= 1  # those of the last step, which this function holds
    del episode
    assert alive(tensors) == [0]


def test_an_evaluation_keeps_nothing() -> None:
    torch.manual_seed(0)
    model, auto, rng = Net(), engines.Auto(), torch.Generator().manual_seed(0)
    tensors: list[Any] = []
    for _ in range(STEPS):
        episode = sample(rng)
        tensors += references(episode)
        evaluate(
            model, recipes.maml(1, 0.1), episode, lambda out, y: (out - y).square().mean(), engine=auto
        )
    del episode
    assert alive(tensors) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [engines.Auto, engines.Compiled, engines.Vmap, engines.Loop])
def test_a_model_is_freed(kind: Any) -> None:
    """The engine outlives it, and so does the default one."""
    rng, engine = torch.Generator().manual_seed(0), kind()
    for part in (engine, None):
        model = Net()
        for _ in range(10):
            meta_backward(model, recipes.maml(1, 0.1), sample(rng), F.mse_loss, engine=part)
        evaluate(model, recipes.maml(1, 0.1), sample(rng), F.mse_loss, engine=part)
        reference = weakref.ref(model)
        del model
        assert alive([reference]) == [0]
