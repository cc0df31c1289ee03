"""Freezing by prefix, and learning rates by prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, meta_backward, nets, recipes


def model() -> nets.NamedHeads:
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    return nets.NamedHeads(body, 6, {"a": 3, "b": 1})


def rates(net: nn.Module, groups: list[dict[str, Any]]) -> dict[str, float]:
    names = {id(param): name for name, param in net.named_parameters()}
    return {names[id(param)]: group["lr"] for group in groups for param in group["params"]}


def test_the_longest_prefix_decides() -> None:
    net = model()
    groups = nets.fine_tune(
        net, 1e-3, frozen=["body", "heads.b.bias"], rates={"body.4": 1e-5, "body.2.weight": 1e-6}
    )
    assert rates(net, groups) == {
        "body.2.weight": 1e-6,
        "body.4.weight": 1e-5,
        "body.4.bias": 1e-5,
        "heads.a.weight": 1e-3,
        "heads.a.bias": 1e-3,
        "heads.b.weight": 1e-3,
    }
    assert {name for name, p in net.named_parameters() if p.requires_grad} == set(rates(net, groups))
    assert len(groups) == 3
    again = nets.fine_tune(net, 1e-3)  # nothing is frozen any more
    assert len(rates(net, again)) == len(list(net.parameters())) and len(again) == 1


def test_frozen_layers_stay_and_the_others_move_at_their_rates() -> None:
    net = model()
    before = {name: param.clone() for name, param in net.named_parameters()}
    groups = nets.fine_tune(net, 1e-2, frozen="body.0", rates={"body": 1e-4})
    optimizer = torch.optim.SGD(groups)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    episodes = {
        "a": Episode(None, Batch(x, torch.tensor([0, 1, 2, 0, 1]))),
        "b": Episode(None, Batch(x, torch.ones(5, 1))),
    }
    meta_backward(net, recipes.joint(), episodes, {"a": F.cross_entropy, "b": F.mse_loss})
    optimizer.step()
    rate = rates(net, groups)
    for name, param in net.named_parameters():
        if name.startswith("body.0."):
            assert torch.equal(param, before[name]) and param.grad is None
        else:
            torch.testing.assert_close(param, before[name] - rate[name] * param.grad)
            assert bool(param.grad.any())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frozen": ["bodi"]}, r"'bodi' names no parameter of NamedHeads; it has 'body', 'heads'"),
        ({"rates": {"body.1": 0.1}}, r"'body\.1' names no parameter"),
        ({"frozen": ["body"], "rates": {"body": 0.1}}, r"'body' is frozen and has a learning rate"),
        ({"frozen": ["body", "heads"]}, r"leaves NamedHeads nothing to learn"),
    ],
)
def test_refused_in_words_and_nothing_changed(options: dict[str, Any], words: str) -> None:
    net = model()
    with pytest.raises(ValueError, match=words):
        nets.fine_tune(net, 1e-3, **options)
    assert all(param.requires_grad for param in net.parameters())
