"""What every architecture of sharing obeys in training: gradients, adaptation, second derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, meta_backward, recipes
from metamtl.functional import forward, vmap_compatible_kernels
from metamtl.objectives import l2_to_mean, penalized, query_loss

from . import net_rows
from .net_rows import (
    ROWS,
    B,
    ask,
    build,
    each_body,
    each_row,
    gradients,
)

LOSS = {"a": F.cross_entropy, "b": F.mse_loss}

pytestmark = pytest.mark.usefixtures("own_random_numbers")


def two_tasks(x: Any) -> dict[str, Episode]:
    rng = torch.Generator().manual_seed(2)
    y = {"a": torch.randint(3, (B,), generator=rng), "b": torch.randn(B, 1, generator=rng).double()}
    return {name: Episode(None, Batch(x, y[name])) for name in y}


@each_body
@each_row
def test_meta_backward_gives_the_gradient_of_the_mean_loss(row: str, body: str) -> None:
    model, x = build(row, body)
    episodes, penalty = two_tasks(x), penalized(l2_to_mean("towers"), 0.3, lambda task: torch.zeros(()))
    meta_backward(model, recipes.joint(objective=ROWS[row].objective), episodes, LOSS)
    outputs, found = ask(model, x, ("a", "b")), []
    for name, episode in episodes.items():
        value = LOSS[name](outputs[name], episode.query.y)
        if ROWS[row].objective is not query_loss:
            params = dict(model.named_parameters())
            value = value + penalty(_Start(params, params))  # type: ignore[arg-type]
        found.append(gradients(model, value))
    for name, param in model.named_parameters():
        mine = [each[name] for each in found if each.get(name) is not None]
        if not mine:
            assert param.grad is None
            continue
        expected = torch.stack(mine).sum(0) / len(episodes)
        torch.testing.assert_close(param.grad, expected, rtol=1e-10, atol=1e-12)


@dataclass
class _Start:
    start: dict[str, Tensor]
    end: dict[str, Tensor]


@each_row
def test_one_head_adapts_to_its_support_set(row: str) -> None:
    model, x = build(row)
    episodes = two_tasks(x)
    support = Batch(x.flip(0), episodes["a"].query.y)
    episodes["a"] = Episode(support, episodes["a"].query)
    head = "top.heads.a" if row == "behind a bottom" else "heads.a"
    adapter = adapters.Gradient(steps=2, lr=0.5, adapts=head)
    recipe = Recipe(adapter, objective=ROWS[row].objective)
    outcome = meta_backward(model, recipe, episodes, LOSS)
    fast = adapter(model, support, LOSS["a"], task="a")
    changed = {name for name, param in model.named_parameters() if fast[name] is not param}
    assert changed == {f"{head}.weight", f"{head}.bias"}
    query = episodes["a"].query
    expected = F.cross_entropy(forward(model, fast, query.x, "a"), query.y)
    torch.testing.assert_close(outcome.losses[0], expected, rtol=1e-12, atol=0.0)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert bool(model.get_parameter(f"{head}.weight").grad.any())


@each_row
def test_an_unknown_task_is_refused(row: str) -> None:
    model, x = build(row)
    for wrong in ("z", ("a", "z"), "heads"):
        with pytest.raises(ValueError, match=r"unknown task '(z|heads)'; there are heads for a, b, c"):
            model(x, task=wrong)


@each_row
def test_no_task_at_all_is_refused(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_rows, "TASKS", {})
    monkeypatch.setattr(net_rows, "DECODER", {})
    with pytest.raises(ValueError, match=r"needs at least one task in outputs"):
        build(row)


@each_body
@each_row
def test_every_body_has_a_second_derivative(row: str, body: str) -> None:
    model, x = build(row, body)
    with vmap_compatible_kernels():
        value = sum(out.sin().sum() for out in ask(model, x, ("a", "b")).values())
        params = [p for p in model.parameters() if p.requires_grad]
        first = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
        norm = sum(g.square().sum() for g in first if g is not None)
        second = torch.autograd.grad(norm, params, allow_unused=True)
    assert any(bool(g.any()) for g in second if g is not None)
    assert all(bool(torch.isfinite(g).all()) for g in second if g is not None)
