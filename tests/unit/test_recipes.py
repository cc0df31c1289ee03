"""Recipes are parts chosen, and nothing new."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from torch import nn

from metamtl import Recipe, adapters, aggregators, objectives, recipes, rules

NET = nn.Linear(2, 1)

MAKERS = {
    "joint": (recipes.joint, adapters.Shared, objectives.query_loss),
    "mtl": (lambda **k: recipes.mtl([0, 1, 2], 4, **k), adapters.HeadTable, objectives.episode_loss),
    "maml": (recipes.maml, adapters.Gradient, objectives.query_loss),
    "fomaml": (recipes.fomaml, adapters.Gradient, objectives.query_loss),
    "anil": (recipes.anil, adapters.Gradient, objectives.query_loss),
    "boil": (recipes.boil, adapters.Gradient, objectives.query_loss),
    "metasgd": (lambda **k: recipes.metasgd(NET, **k), adapters.Gradient, objectives.query_loss),
    "lslr": (lambda **k: recipes.lslr(NET, **k), adapters.Gradient, objectives.query_loss),
    "imaml": (recipes.imaml, adapters.Gradient, objectives.query_loss),
    "reptile": (recipes.reptile, adapters.Gradient, objectives.displacement),
    "protonet": (recipes.protonet, adapters.Prototype, objectives.query_loss),
}


@pytest.mark.parametrize("name", MAKERS)
def test_parts_and_their_replacement(name: str) -> None:
    make, adapter, objective = MAKERS[name]
    recipe = make()
    assert type(recipe.adapter) is adapter and recipe.objective is objective
    assert type(recipe.aggregator) is aggregators.Mean
    other = make(aggregator=aggregators.MGDA(), objective=objectives.episode_loss)
    assert other.aggregator.name == "MGDA" and other.objective is objectives.episode_loss


def test_what_the_gradient_recipes_choose() -> None:
    assert recipes.maml(3, 0.1).adapter.lr == (0.1, 0.1, 0.1)
    assert recipes.maml(2, [0.1, 0.2]).adapter.lr == (0.1, 0.2)
    assert (
        recipes.maml().adapter.adapts is None
        and recipes.maml().adapter.differentiation == adapters.Unrolled()
    )
    assert recipes.fomaml(adapts="head").adapter.differentiation == adapters.FirstOrder()
    assert recipes.fomaml(adapts="head").adapter.adapts == "head"
    assert recipes.anil().adapter.adapts == "head" and recipes.boil().adapter.adapts == "body"
    assert recipes.anil(adapts=("a", "b")).adapter.adapts == ("a", "b")
    assert recipes.anil(differentiation="first_order").adapter.differentiation == adapters.FirstOrder()
    assert (
        recipes.reptile().adapter.differentiation == adapters.FirstOrder()
        and recipes.reptile().adapter.steps == 5
    )
    adam = rules.Adam(betas=(0.0, 0.999))
    for make in (recipes.maml, recipes.anil, recipes.boil, recipes.reptile, recipes.imaml):
        assert make(rule=adam).adapter.rule is adam
    assert (
        recipes.metasgd(NET, 3, differentiation="first_order").adapter.differentiation
        == adapters.FirstOrder()
    )
    assert (
        recipes.metasgd(NET).adapter.lr.per == "element" and recipes.metasgd(NET).adapter.lr.steps is None
    )
    assert recipes.lslr(NET, 4).adapter.lr.per == "tensor" and recipes.lslr(NET, 4).adapter.lr.steps == 4
    assert recipes.imaml(adapts="head").adapter.differentiation == adapters.Implicit(proximal=2.0)


def test_two_recipes_share_nothing_and_a_recipe_stays_as_it_is() -> None:
    assert recipes.joint().aggregator is not recipes.joint().aggregator
    with pytest.raises(FrozenInstanceError):
        recipes.joint().adapter = adapters.Prototype()  # type: ignore[misc]
    assert Recipe(adapters.Shared()).objective is objectives.query_loss
