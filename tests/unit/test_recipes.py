"""Recipes are parts chosen, and nothing new."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

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
    "class_means": (recipes.class_means, adapters.ClassMeans, objectives.query_loss),
    "matching": (recipes.matching, adapters.Matching, objectives.query_loss),
    "relation": (lambda **k: recipes.relation(4, **k), adapters.Relation, objectives.query_loss),
    "simple_shot": (recipes.simple_shot, adapters.SimpleShot, objectives.query_loss),
    "feat": (lambda **k: recipes.feat(4, **k), adapters.FEAT, objectives.query_loss),
    "r2d2": (recipes.r2d2, adapters.Ridge, objectives.query_loss),
    "logistic": (recipes.logistic, adapters.Logistic, objectives.query_loss),
    "metaoptnet": (recipes.metaoptnet, adapters.SVM, objectives.query_loss),
    "cavia": (recipes.cavia, adapters.Chain, objectives.query_loss),
    "drop_grad": (recipes.drop_grad, adapters.Gradient, objectives.query_loss),
    "meta_curvature": (
        lambda **k: recipes.meta_curvature(NET, **k),
        adapters.Gradient,
        objectives.query_loss,
    ),
    "learned_rule": (recipes.learned_rule, adapters.Gradient, objectives.query_loss),
    "fine_tuning": (recipes.fine_tuning, adapters.Chain, objectives.query_loss),
    "frozen_logistic": (recipes.frozen_logistic, adapters.Logistic, objectives.query_loss),
    "tim": (recipes.tim, adapters.TIM, objectives.query_loss),
    "laplacian_shot": (recipes.laplacian_shot, adapters.LaplacianShot, objectives.query_loss),
    "transductive_fine_tuning": (
        recipes.transductive_fine_tuning,
        adapters.TransductiveFineTuning,
        objectives.query_loss,
    ),
}
# Their schedules choose the objective.
SCHEDULED = {"maml_plus_plus", "es_maml"}


def test_every_recipe_is_in_the_table() -> None:
    assert {*MAKERS, *SCHEDULED} == set(recipes.__all__) - {"Recipe"}
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in readme for name in recipes.__all__ if name != "Recipe")


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
