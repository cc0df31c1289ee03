"""The table of few-shot methods: it has every recipe, and its numbers of backward passes are measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, backward_passes, nets, recipes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "few_shot_method.md"
FEATURES = 6


def table() -> dict[str, str]:
    """The passes of every recipe in the table."""
    rows = {}
    text = PAGE.read_text(encoding="utf-8").partition("## By cost")[2].partition("## Compare")[0]
    for line in text.splitlines():
        if line.startswith("| `"):
            names, _, _, passes, _ = (cell.strip() for cell in line[1:-1].split("|"))
            rows |= {name: passes for name in re.findall(r"`(\w+)`", names)}
    return rows


def build(name: str, steps: int) -> tuple[nn.Module, Recipe]:
    torch.manual_seed(0)
    model: nn.Module = nets.mlp(4, 8, FEATURES, 3)
    method: Any = getattr(recipes, name)
    if name == "cavia":
        model = nets.context_mlp(4, 8, FEATURES, 3, context=2)
    options: tuple[Any, ...] = {
        "mtl": (range(3), FEATURES),
        "relation": (FEATURES,),
        "feat": (FEATURES,),
    }.get(name, ())
    if name in ("metasgd", "lslr", "meta_curvature"):
        options = (model, steps)
    elif name == "maml_plus_plus":
        return model, recipes.maml_plus_plus(model, steps, multi_step_until=10).at(0)
    elif "K" in PASSES[name]:
        options = (steps,)
    recipe: Recipe = method(*options)
    return model, recipe.at(0) if name in ("es_maml", "drop_grad") else recipe


PASSES = table()


def test_every_recipe_has_a_row() -> None:
    assert set(PASSES) == set(recipes.__all__) - {"Recipe"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSES)
def test_the_passes_are_those_of_the_table(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    support, query = (
        Batch(torch.randn(1, 6, 4, generator=rng), torch.arange(3).repeat(1, 2)) for _ in range(2)
    )
    episode = Episode(support, query, task=torch.arange(3)[None])
    for steps in (1, 3):
        with torch.random.fork_rng():
            model, recipe = build(name, steps)
            factor, constant = re.fullmatch(r"(?:(\d*)K)?(?: \+ )?(\d*)", PASSES[name]).groups()  # type: ignore[union-attr]
            expected = 0 if factor is None else int(factor or 1) * steps
            assert backward_passes(model, recipe, episode, F.cross_entropy) == expected + int(constant or 0)


def test_the_page_names_the_transductive_methods() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("all queries of a task are known at once")[2]
    row = text.partition("\n")[0]
    with torch.random.fork_rng():
        transductive = {name for name in PASSES if build(name, 1)[1].adapter.transductive}
    assert transductive == set(re.findall(r"`(\w+)`", row))
