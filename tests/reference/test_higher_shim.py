"""Inner loops written for `higher`: the library itself, and the same code over `metamtl.unrolled`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from . import higher_shim

LR = 0.05
EPS = 1e-15  # higher 0.2.1 adds eps elsewhere in the formulas than torch.optim does
COUNTED = ("adam", "amsgrad", "adagrad", "adamax")  # for which higher computes with a count in float32
OPTIMIZERS: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, {}),
    "momentum": (optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "dampening": (optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    "adam": (optim.Adam, {"weight_decay": 0.1, "eps": EPS}),
    "amsgrad": (optim.Adam, {"amsgrad": True, "eps": EPS}),
    "adadelta": (optim.Adadelta, {"weight_decay": 0.1}),
    "adagrad": (optim.Adagrad, {"lr_decay": 0.1, "eps": EPS}),
    "adamax": (optim.Adamax, {"eps": EPS}),
}
Loop = Callable[[ModuleType], list[Tensor]]


class Tied(nn.Module):
    """A layer that is used twice, a layer that is not used, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.frozen(self.again(torch.tanh(self.first(x))))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, None].expand(-1, 3, -1))[0][:, -1])


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def build(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


def batches(number: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(6, 4, generator=rng, dtype=torch.float64) for _ in range(number)]


def loss_of(model: Any, x: Tensor) -> Tensor:
    return F.mse_loss(model(x), x[:, 2:])


def groups(model: nn.Module) -> list[dict[str, Any]]:
    own = [param for param in model.parameters() if param.requires_grad]
    return [{"params": own[:2], "lr": 2 * LR}, {"params": own[2:]}]


def trained(model: nn.Module, name: str, steps: int) -> optim.Optimizer:
    """An optimizer with two groups, after some steps of its own."""
    kind, options = OPTIMIZERS[name]
    optimizer = kind(groups(model), lr=LR, **options)
    for x in batches(steps):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
    model.zero_grad()
    return optimizer


def assert_same(higher: ModuleType, loop: Loop, error: float = 1e-10) -> None:
    """The same results with the library and with the functions over `unrolled`."""
    theirs, ours = loop(higher), loop(higher_shim.modules()["higher"])
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=error, atol=error / 100)
    assert any(result.abs().max() > 1e-6 for result in ours)


@pytest.mark.parametrize("taken_over", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_with_groups_and_state(higher: ModuleType, name: str, taken_over: int) -> None:
    def loop(library: ModuleType) -> list[Tensor]:
        model = build(plain)
        optimizer = trained(model, name, taken_over)
        with library.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (fmodel, diffopt):
            for x in batches(3):
                diffopt.step(loss_of(fmodel, x))
            loss_of(fmodel, batches(4)[3]).backward()
            return [*fmodel.parameters(), *(param.grad for param in model.parameters())]

    assert_same(higher, loop, 1e-3 if name in COUNTED else 1e-10)


@pytest.mark.filterwarnings("ignore:Tied does not use unused")
@pytest.mark.parametrize("make", [Tied, Recurrent])
def test_tied_unused_frozen_and_recurrent_layers(higher: ModuleType, make: Callable[[], nn.Module]) -> None:
    def loop(library: ModuleType) -> list[Tensor]:
        model = build(make)
        with library.innerloop_ctx(model, trained(model, "momentum", 0)) as (fmodel, diffopt):
            for x in batches(3):
                diffopt.step(loss_of(fmodel, x))
            start = [param for param in fmodel.parameters(time=0) if param.requires_grad]
            grads = torch.autograd.grad(loss_of(fmodel, batches(4)[3]), start, allow_unused=True)
            return [*fmodel.parameters(), *(grad for grad in grads if grad is not None)]

    assert_same(higher, loop)


@pytest.mark.parametrize("at_step", [False, True])
def test_options_as_tensors_from_a_computation(higher: ModuleType, at_step: bool) -> None:
    """Learning rates and momenta by group, results of other tensors, for all steps or for each one."""

    def loop(library: ModuleType) -> list[Tensor]:
        model = build(plain)
        logits = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (-2.0, 1.0)]

        def override(k: int) -> dict[str, list[Any]]:
            lr, momentum = (torch.sigmoid(logit + 0.1 * k) for logit in logits)
            return {"lr": [lr, lr / 2], "momentum": [momentum], "weight_decay": [0.1, lr]}

        fmodel = library.monkeypatch(model, copy_initial_weights=False)
        optimizer = trained(model, "momentum", 0)
        fixed = None if at_step else override(0)
        diffopt = library.get_diff_optim(optimizer, model.parameters(), fmodel=fmodel, override=fixed)
        for k, x in enumerate(batches(3)):
            diffopt.step(loss_of(fmodel, x), override=override(k) if at_step else None)
        loss_of(fmodel, batches(4)[3]).backward()
        return [tensor.grad for tensor in (*logits, *model.parameters())]

    assert_same(higher, loop)


def test_parameters_from_an_update_of_the_caller(higher: ModuleType) -> None:
    def loop(library: ModuleType) -> list[Tensor]:
        model = build(plain)
        fmodel = library.monkeypatch(model)
        for x in batches(2):
            params = list(fmodel.parameters())
            grads = torch.autograd.grad(loss_of(fmodel, x), params, create_graph=True)
            fmodel.fast_params = [param - LR * grad for param, grad in zip(params, grads)]
        params = [2 * param for param in fmodel.parameters()]
        value = F.mse_loss(fmodel(batches(3)[2], params=params), batches(3)[2][:, 2:])
        return [value, *torch.autograd.grad(value, list(fmodel.parameters(time=0)))]

    assert_same(higher, loop)


def test_no_graph_remains_if_higher_gradients_are_not_tracked(higher: ModuleType) -> None:
    def loop(library: ModuleType) -> list[Tensor]:
        model = build(plain)
        options = {"copy_initial_weights": False, "track_higher_grads": False}
        with library.innerloop_ctx(model, trained(model, "momentum", 2), **options) as (fmodel, diffopt):
            for x in batches(3):
                diffopt.step(loss_of(fmodel, x), grad_callback=lambda grads: [grad / 2 for grad in grads])
            assert all(param.is_leaf and param.requires_grad for param in fmodel.parameters())
            loss_of(fmodel, batches(4)[3]).backward()
            assert all(param.grad is None for param in model.parameters())
            return [*fmodel.parameters(), *(param.grad for param in fmodel.parameters())]

    assert_same(higher, loop)


@pytest.mark.filterwarnings("ignore:Tied does not use unused")
def test_submodules_are_called_with_the_current_parameters(higher: ModuleType) -> None:
    def loop(library: ModuleType) -> list[Tensor]:
        model = build(Tied)
        with library.innerloop_ctx(model, trained(model, "sgd", 0)) as (fmodel, diffopt):
            diffopt.step(loss_of(fmodel, batches(1)[0]))
            return [fmodel.head(batches(1)[0])]

    assert_same(higher, loop)


def test_learned_options_are_written_back_into_an_optimizer(higher: ModuleType) -> None:
    def loop(library: ModuleType) -> list[Tensor]:
        learned = library.optim.get_trainable_opt_params(trained(build(plain), "adam", 0))
        optimizer = optim.Adam(groups(build(plain)), lr=7.0)
        library.optim.apply_trainable_opt_params(optimizer, learned)
        return [
            torch.tensor([group["lr"], *group["betas"], group["weight_decay"]])
            for group in optimizer.param_groups
        ]

    assert_same(higher, loop)
