"""A parameter or module that stands in a model in several places is one: iMAML, and heads that are written.

The reference is plain autograd (the fixture `plain`) on a copy of the model.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, recipes

PROXIMAL, RATE, IDS = 4.0, 0.1, (4, 0, 2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["all", "head", "body"])
def test_imaml(case: Any, part: str, engine: engines.Engine) -> None:
    """The implicit gradient at the end of the steps, by a dense solve."""
    prefix = {"all": None, "head": case.kind.heads[-1], "body": case.kind.bodies[-1]}[part]
    names = list(case.net.start) if prefix is None else case.net.names(prefix)
    rows = [implicit_row(case, names, case.episode[t]) for t in range(case.episode.num_tasks)]
    expected = [torch.stack(column).mean(0) for column in zip(*rows)]
    recipe = recipes.imaml(5, RATE, adapts=prefix, proximal=PROXIMAL, solver_steps=60)
    case.check(recipe, engine, expected)


def implicit_row(case: Any, names: list[str], task: Any) -> list[Tensor]:
    """One task's gradient: `proximal v` for what is adapted, the direct and the mixed part for the rest."""
    end = case.net.steps(
        case.net.start,
        names,
        task.support,
        case.loss,
        dict.fromkeys(names, RATE),
        5,
        first_order=True,
        proximal=PROXIMAL,
    )
    leaves = {name: value.detach().requires_grad_() for name, value in end.items()}
    adapted = [leaves[name] for name in names]
    query = case.loss(case.net(leaves, task.query[0]), task.query[1])
    direct = gradients(query, leaves)
    support = case.loss(case.net(leaves, task.support[0]), task.support[1])
    slope = flat(torch.autograd.grad(support, adapted, create_graph=True))
    rows = [flat(torch.autograd.grad(entry, adapted, retain_graph=True)) for entry in slope]
    right = flat([direct[name] for name in names])
    v = torch.linalg.solve(torch.stack(rows) + PROXIMAL * torch.eye(len(right)).double(), right)
    mixed = gradients(slope @ v, leaves)
    moved = dict(zip(names, (PROXIMAL * v).split([leaf.numel() for leaf in adapted])))
    return [
        moved[name].view_as(leaf) if name in moved else direct[name] - mixed[name]
        for name, leaf in leaves.items()
    ]


def gradients(value: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    grads = torch.autograd.grad(value, [*leaves.values()], allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, grads))


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


WRITTEN = ["no sharing", "a tied weight", "a body around another module", "body and head as second names"]
written = pytest.mark.parametrize("case", WRITTEN, indirect=True)


@pytest.fixture
def classes(case: Any) -> Any:
    """The case with class labels 0, 1, 2 and class ids."""
    ids, y = torch.tensor([[0, 7, 4], [2, 4, 0]]), torch.arange(3).expand(2, 3)
    case.episode = Episode(Batch(case.episode.support.x, y), Batch(case.episode.query.x, y), ids)
    case.loss = F.cross_entropy
    return case


@written
@pytest.mark.parametrize("alias", [0, -1])
def test_prototype(classes: Any, alias: int, engine: engines.Engine) -> None:
    case = classes
    body, head = (
        "body" if "backbone" in case.kind.bodies else case.kind.bodies[alias],
        case.kind.heads[alias],
    )
    weight, bias = (case.net.aliases[f"{head}.{local}"] for local in ("weight", "bias"))

    def adapt(values: Any, support: Any, task: Any) -> Any:
        features = case.net(values, support[0], body)
        means = torch.stack([features[support[1] == label].mean(0) for label in range(3)])
        return {**values, weight: 2 * means, bias: -means.square().sum(1)}

    case.check(recipes.protonet(body=body, head=head), engine, case.expected(adapt))


@written
@pytest.mark.parametrize("alias", [0, -1])
def test_a_table_of_heads_then_a_step(classes: Any, alias: int, engine: engines.Engine) -> None:
    case, head = classes, classes.kind.heads[alias]
    table = adapters.HeadTable(IDS, 3, head).double()
    weights, biases = (p.detach().clone().requires_grad_() for p in (table.weight, table.bias))
    weight, bias = (case.net.aliases[f"{head}.{local}"] for local in ("weight", "bias"))
    rates = dict.fromkeys(case.net.start, RATE)

    def adapt(values: Any, support: Any, task: Any) -> Any:
        rows = [IDS.index(int(i)) for i in task]
        values = {**values, weight: weights[rows], bias: biases[rows]}
        return case.net.steps(values, list(values), support, case.loss, rates, 1)

    recipe = Recipe(adapters.Chain(table, adapters.Gradient(1, RATE)))
    case.check(recipe, engine, case.expected(adapt, (weights, biases)))
