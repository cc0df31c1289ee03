"""Calling a module with other parameters, and finding parameters by prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metamtl import Batch, Episode, engines, meta_backward, nets, recipes
from metamtl.functional import (
    forward,
    has_adapter_buffers,
    is_name,
    select_parameters,
    structure_of,
    trainable,
    with_prefix,
)


class Sum(nn.Module):
    """Two inputs, and a task's name."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, a: Tensor, b: Tensor, task: Any = None) -> tuple[Tensor, Any]:
        return self.scale * (a + 2 * b), task


@pytest.mark.parametrize("pack", [lambda a, b: (a, b), lambda a, b: {"b": b, "a": a}])
def test_tuples_are_positions_and_dicts_are_keywords(pack: Callable[[Tensor, Tensor], Any]) -> None:
    model, x = Sum(), pack(torch.ones(3), torch.full((3,), 10.0))
    params = {"scale": torch.tensor(2.0)}
    found, task = forward(model, params, x)
    assert found.tolist() == [42.0] * 3 and task is None
    assert forward(model, params, x, "case")[1] == "case"
    assert forward(model, params, x, ("case", "slant"))[1] == ("case", "slant")
    assert forward(model, params, x, torch.tensor([1, 2]))[1] is None  # ids stay with the adapter


def test_names_are_told_from_ids() -> None:
    assert is_name("a") and is_name(("a", "b"))
    assert not is_name(None) and not is_name(torch.zeros(2)) and not is_name(()) and not is_name((1, "a"))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=None)])
def test_running_statistics_are_not_written(norm: nn.Module) -> None:
    model, x = nn.Sequential(nn.Linear(2, 2), norm), torch.randn(8, 2)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = forward(model, dict(model.named_parameters()), x)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    torch.testing.assert_close(found, model(x))
    assert int(norm.num_batches_tracked) == 1  # the module itself still counts


def test_buffers_may_be_given_too() -> None:
    norm, x = nets.FrozenBatchNorm(2), torch.randn(4, 2)
    given = {"running_mean": torch.full((2,), 3.0, requires_grad=True), "running_var": torch.ones(2)}
    found = forward(norm, given, x)
    torch.testing.assert_close(found, (x - 3) / (1 + norm.eps) ** 0.5)
    assert torch.autograd.grad(found.sum(), given["running_mean"])[0].any()
    assert not norm.running_mean.any()


def test_the_inner_step_is_told_to_those_who_ask() -> None:
    model = nets.mlp(1, 4, 1)
    assert structure_of(model).counters == () and not has_adapter_buffers(model)
    model.body.register_buffer("inner_step", torch.tensor(0))
    assert structure_of(model).counters == ("body.inner_step",) and has_adapter_buffers(model)
    assert has_adapter_buffers(nets.SupportBatchNorm(2)) and not has_adapter_buffers(
        nets.FrozenBatchNorm(2)
    )


def test_a_prefix_takes_whole_names() -> None:
    names = ["head.weight", "head.bias", "header.weight", "body.head.weight", "headless"]
    assert with_prefix(names, "head") == ["head.weight", "head.bias"]
    assert with_prefix(names, "head.bias") == ["head.bias"] and with_prefix(names, "") == names


def test_named_by_keeps_the_models_order_and_leaves_frozen_ones() -> None:
    model = nets.mlp(1, 4, 4, 1)
    model.body[0].weight.requires_grad_(False)
    assert "body.0.weight" not in select_parameters(model, None)
    assert select_parameters(model, ["head", "body.0"]) == ["body.0.bias", "head.weight", "head.bias"]
    assert select_parameters(model, ["head", "head.bias"]) == ["head.weight", "head.bias"]


def test_tied_parameters_stand_once_and_both_places_change() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert list(trainable(model)) == ["0.weight"]
    found = forward(model, {"0.weight": 3 * torch.eye(2)}, torch.ones(1, 2))
    assert found.tolist() == [[9.0, 9.0]]


def test_the_structure_of_a_part_keeps_the_names_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.GRU(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model[2].weight = model[0].weight
    structure = structure_of(model)
    part = structure.within([model[2], model[3]])
    assert [slot.name for slot in part.slots] == ["0.weight", "2.bias", "3.weight", "3.bias"]
    assert set(part.plain) == {model[2], model[3]} and part.recurrent == () and not part.fused
    assert structure.within(model).slots == tuple(s for s in structure.slots if s.module is not model)
    assert structure.fused and structure.within([model[1]]).recurrent == (model[1],)


def test_inner_steps_on_a_head_restore_what_its_forward_pass_sets() -> None:
    class Head(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.last_input = x
            return super().forward(x)

    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), Head(3, 1))
    before = {module: dict(vars(module)) for module in model.modules()}
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    episode = Episode(
        Batch(torch.randn(4, 5, 2), torch.randn(4, 5, 1)), Batch(torch.randn(4, 5, 2), torch.randn(4, 5, 1))
    )
    meta_backward(
        model, recipes.anil(2, 0.1, adapts="2"), episode, nn.functional.mse_loss, engine=engines.Loop()
    )
    for module, attributes in before.items():
        assert vars(module).keys() == attributes.keys() and not hasattr(module, "last_input")
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
