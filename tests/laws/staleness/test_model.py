"""What `forward` reads is read at every call, under engines that compile."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metamtl import engines

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
COEFFICIENT = 0.8
SCRIPT = globals()


def helper(h: Tensor) -> Tensor:
    return 1.1 * h


def other_helper(h: Tensor) -> Tensor:
    return 0.6 * h


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Record:
    weight: float = 0.9


class Net(nn.Module):
    """A smooth net whose forward pass reads one of everything."""

    offset = 0.1

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 2)
            self.stack = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.activations = [nn.Tanh()]
        self.count, self.gain, self.flag, self.mode, self.limit = 2, 0.9, True, "sin", None
        self.pair, self.scales, self.table = (0.9, 2.0), [0.5, 0.9], {"a": 0.9, "b": 1.0}
        self.allowed, self.record, self.names = {"sin"}, Record(), SimpleNamespace(weight=0.9)
        self.color, self.function = Color.RED, torch.sin
        self.constant = torch.full((3,), 0.9, dtype=torch.float64)
        self.register_buffer("shift", torch.full((3,), 0.1))

    def middle(self, h: Tensor) -> Tensor:
        return h + self.offset

    def forward(self, x: Tensor) -> Tensor:
        h = self.activations[0](self.first(x)) * self.gain * self.pair[0] * self.scales[1]
        h = h * self.table["a"] * self.record.weight * self.names.weight * self.constant + self.shift
        h = h + h**self.count if self.flag else h
        h = torch.sin(2 * h) if self.mode == "sin" else torch.cos(2 * h)
        h = h if self.limit is None else self.limit * h
        h = h + 0.3 * h**2 if "sin" in self.allowed else h
        h = (1.2 if self.color is Color.RED else 0.7) * h + self.function(h)
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        h = COEFFICIENT * helper(self.middle(self.stack(h)))
        return self.last(h if self.training else 0.5 * h)


def half(self: Any, *args: Any) -> Any:
    """A hook that halves the output, or a method that halves its input."""
    return 0.5 * args[-1]


@contextmanager
def done(do: Callable[[], Any], undo: Callable[[], Any]) -> Iterator[None]:
    do()
    try:
        yield
    finally:
        undo()


def hooked(register: Callable[..., Any], hook: Callable[..., Any] = half) -> Any:
    handle = register(hook)
    return done(lambda: None, handle.remove)


def written(tensor: Tensor) -> Any:
    before = tensor.detach().clone()
    return done(lambda: tensor.data.mul_(-2.0), lambda: tensor.data.copy_(before))


def replaced(owner: Any, name: str, value: Any) -> Any:
    before = getattr(owner, name)
    return done(lambda: setattr(owner, name, value), lambda: setattr(owner, name, before))


def appended(modules: Any, module: nn.Module) -> Any:
    return done(lambda: modules.append(module), lambda: modules.__delitem__(-1))


def recoded(function: Any, other: Any) -> Any:
    """Other code in the same function, as when a script is reloaded in place."""
    return replaced(function, "__code__", other.__code__)


def model(case: Any) -> Any:
    return case.model


def net(build: Any) -> Any:
    return build(Net())


def with_hook(build: Any) -> Any:
    case = build(Net())
    case.factors = [0.9]
    case.hook = lambda module, inputs, output: case.factors[0] * output
    case.handle = case.model.first.register_forward_hook(case.hook)
    return case


def without_hook(case: Any) -> Any:
    def again() -> None:
        case.handle = case.model.first.register_forward_hook(case.hook)

    return done(case.handle.remove, again)


def tied(build: Any) -> Any:
    case = build(Net())
    case.model.layers[1].weight = case.model.layers[0].weight
    return case


def normalized(build: Any) -> Any:
    case = build(Net())
    case.model.stack.append(nn.BatchNorm1d(3).double())
    return case


def parameter(value: float) -> nn.Parameter:
    return nn.Parameter(torch.full((3, 3), value, dtype=torch.float64))


# What differs from row to row is the setup, and what is changed.
ROWS: dict[str, tuple[Any, Any]] = {
    "int": (net, (model, "count", 3)),
    "float": (net, (model, "gain", 0.4)),
    "bool": (net, (model, "flag", False)),
    "string": (net, (model, "mode", "cos")),
    "None": (net, (model, "limit", 0.4)),
    "tuple": (net, (model, "pair", (0.4, 2.0))),
    "element of a list": (net, (lambda case: case.model.scales, 1, 0.4)),
    "element of a dict": (net, (lambda case: case.model.table, "a", 0.4)),
    "set": (
        net,
        lambda case: done(case.model.allowed.clear, lambda: case.model.allowed.add("sin")),
    ),
    "dataclass": (net, (lambda case: case.model.record, "weight", 0.4)),
    "namespace": (net, (lambda case: case.model.names, "weight", 0.4)),
    "enum": (net, (model, "color", Color.BLUE)),
    "function": (net, (model, "function", torch.cos)),
    "tensor replaced": (net, (model, "constant", torch.full((3,), 0.4, dtype=torch.float64))),
    "tensor written": (net, lambda case: written(case.model.constant)),
    "buffer replaced": (net, (model, "shift", torch.full((3,), 0.7, dtype=torch.float64))),
    "buffer written": (net, lambda case: written(case.model.shift)),
    "parameter written": (net, lambda case: written(case.model.stack[0].weight)),
    "parameter replaced": (net, lambda case: replaced(case.model.stack[0], "weight", parameter(0.4))),
    "parameter frozen": (net, lambda case: replaced(case.model.stack[0].weight, "requires_grad", False)),
    "train and eval": (net, lambda case: done(case.model.eval, case.model.train)),
    "train and eval of BatchNorm": (normalized, lambda case: done(case.model.eval, case.model.train)),
    "module replaced": (net, lambda case: replaced(case.model.stack, "1", nn.Sigmoid())),
    "module appended to a Sequential": (net, lambda case: appended(case.model.stack, nn.Softplus())),
    "module appended to a ModuleList": (net, lambda case: appended(case.model.layers, nn.Softplus())),
    "module in a plain list": (net, (lambda case: case.model.activations, 0, nn.Softplus())),
    "one module twice": (net, lambda case: replaced(case.model.stack, "0", case.model.layers[0])),
    "weights tied": (
        net,
        lambda case: replaced(case.model.layers[1], "weight", case.model.layers[0].weight),
    ),
    "weights untied": (tied, lambda case: replaced(case.model.layers[1], "weight", parameter(0.4))),
    "forward hook added": (net, lambda case: hooked(case.model.stack.register_forward_hook)),
    "forward hook removed": (with_hook, without_hook),
    "closure of a hook": (with_hook, (lambda case: case.factors, 0, 0.4)),
    "hook of the model": (net, lambda case: hooked(case.model.register_forward_hook)),
    "forward pre-hook": (
        net,
        lambda case: hooked(case.model.stack.register_forward_pre_hook, lambda _, inputs: 0.5 * inputs[0]),
    ),
    "method of the instance": (net, (model, "middle", lambda h: 0.5 * h)),
    "forward of the instance": (
        net,
        lambda case: done(
            lambda: setattr(case.model, "forward", lambda x: case.model.last(case.model.first(x))),
            lambda: delattr(case.model, "forward"),
        ),
    ),
    "attribute of the class": (net, (lambda case: Net, "offset", 0.9)),
    "method of the class": (net, (lambda case: Net, "middle", half)),
    "forward of the class": (net, (lambda case: Net, "forward", lambda self, x: self.last(self.first(x)))),
    "code of a method": (net, lambda case: recoded(Net.middle, half)),
    "global": (net, (lambda case: SCRIPT, "COEFFICIENT", 0.4)),
    "helper function": (net, (lambda case: SCRIPT, "helper", other_helper)),
    "code of a helper function": (net, lambda case: recoded(helper, other_helper)),
}
# A recompilation takes two seconds, so engines that compile run those rows that differ most.
AUTO = [
    "float",
    "element of a list",
    "dataclass",
    "function",
    "None",
    "parameter frozen",
    "tensor replaced",
    "parameter replaced",
    "train and eval",
    "module appended to a Sequential",
    "weights tied",
    "forward hook added",
    "closure of a hook",
    "method of the instance",
    "method of the class",
    "global",
    "code of a helper function",
]
COMPILED = [
    *AUTO,
    "buffer replaced",
    "train and eval of BatchNorm",
]
RUNS = [
    *(("vmap", name) for name in ROWS),
    *(("compiled", name) for name in COMPILED),
    *(("auto", name) for name in AUTO),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_a_change_between_two_calls(kind: str, name: str, check_row: Any) -> None:
    setup, mutation = ROWS[name]
    check_row(kind, setup, setup, mutation)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [engines.Vmap, engines.Compiled])
def test_another_precision_and_back(kind: Any, build: Any, gap: Any, guards_only: None) -> None:
    case, engine = net(build), kind()
    before = case.gradient(engines.Loop())
    assert gap(case.gradient(engine), before) <= 1e-9
    double, case.episode = case.episode, case.episode.map(to_float)
    case.model.float()
    case.model.constant = case.model.constant.float()
    single = case.gradient(engine)
    assert all(g is None or g.dtype == torch.float32 for g in single.values())
    assert gap({name: g if g is None else g.double() for name, g in single.items()}, before) <= 1e-5
    case.model.double()
    case.model.constant = case.model.constant.double()
    case.episode = double
    # The parameters and the buffer were rounded.
    assert gap(case.gradient(engine), case.gradient(engines.Loop())) <= 1e-9


def to_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
