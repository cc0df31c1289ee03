"""Errors of named tasks say what was found, why it cannot work and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    meta_backward,
    recipes,
)

from .error_cases import CALLS, Refused, episode, model, named, refused


def test_named_tasks_that_are_not_finite() -> None:
    net, data, losses = named()
    data["slant"].query.y[0] = torch.nan
    with refused(net, r"loss of tasks \['slant'\] of 2", error=FloatingPointError):
        meta_backward(net, recipes.joint(), data, losses)


def test_a_gradient_that_is_not_finite_in_a_tasks_own_head() -> None:
    net, data, losses = named()

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * torch.nan

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output, y)

    bias = net.heads["slant"].forward
    net.heads["slant"].forward = lambda f: bias(f) + 0 * Cut.apply(net.heads["slant"].bias)  # type: ignore
    with refused(
        net, r"heads\.slant\.bias \(task 1\) is not finite", r"Nothing was added", error=FloatingPointError
    ):
        meta_backward(net, recipes.joint(), data, {**losses, "slant": loss})


@pytest.mark.parametrize("call", CALLS)
def test_a_dict_without_a_loss(call: Refused) -> None:
    net, data, losses = named()
    with refused(net, r"no loss for tasks \['slant'\]", r"dict by task name, not \['case'\]"):
        call(net, recipes.joint(), data, {"case": losses["case"]})
    with refused(net, r"no loss for tasks \['case', 'slant'\]", "dict by task name", "one loss for all"):
        call(net, recipes.joint(), data, F.mse_loss)
    with refused(net, "a dict of losses needs a dict of episodes"):
        call(net, recipes.joint(), episode(), losses)


@pytest.mark.parametrize("call", CALLS)
def test_an_empty_dict(call: Refused) -> None:
    net, _, losses = named()
    with refused(net, "dict of episodes is empty", "at least one named task"):
        call(net, recipes.joint(), {}, losses)


def test_tasks_that_share_no_parameter() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"case": nn.Linear(2, 3), "slant": nn.Linear(2, 1)})

        def forward(self, x: Tensor, task: Any) -> Any:
            return self.heads[task](x) if isinstance(task, str) else {t: self.heads[t](x) for t in task}

    _, data, losses = named()
    net = Apart()
    with refused(net, "'case', 'slant' share no parameter", "common body, or train them separately"):
        meta_backward(net, recipes.joint(), data, losses)


@pytest.mark.parametrize("call", CALLS)
def test_named_tasks_of_shapes_that_do_not_fit(call: Refused) -> None:
    net, data, losses = named()
    data["slant"] = Episode(None, Batch(torch.zeros(6, 2), torch.zeros(5, 1)))
    with refused(net, "task 'slant': query", r"\[6, 2\], \[5, 1\]"):
        call(net, recipes.joint(), data, losses)


@pytest.mark.parametrize("call", CALLS)
def test_labels_of_a_named_task(call: Refused) -> None:
    net, data, losses = named()
    data["case"].query.y[0] = 3
    with refused(net, "labels reach up to 3", "3 classes"):
        call(net, recipes.joint(), data, losses)


@pytest.mark.parametrize("call", CALLS)
def test_a_head_that_is_not_there(call: Refused) -> None:
    net, data, _ = named()
    with refused(net, "unknown task 'size'", "heads for case, slant"):
        call(net, recipes.joint(), {"size": data["slant"]}, {"size": F.mse_loss})


@pytest.mark.parametrize("call", CALLS)
def test_named_tasks_of_a_model_without_heads_by_name(call: Refused) -> None:
    net, (_, data, losses) = model(), named()
    with refused(net, "MLP", r"task=", r"nets\.named_heads"):
        call(net, recipes.joint(), data, losses)
