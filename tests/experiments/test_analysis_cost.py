"""The cost of an analysis: what is counted, and its table."""

from __future__ import annotations

import pytest

from experiments import analysis_cost
from experiments.tables import analysis_cost as table

TASKS = 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "name", "gradients", "products", "forward_mode"),
    [
        ("joint", "cosine", 1, 0, 0),
        ("joint", "look_ahead", 1, 0, 0),
        ("joint", "linearized", 1, 0, TASKS),
        ("maml", "transfer", 2, 0, 0),  # an inner step, and the outer gradient
        ("maml", "look_ahead", 2 + TASKS + 1, 0, 0),  # adapts before, and after a step on every task
    ],
)
def test_passes_for_each_task(
    recipe: str, name: str, gradients: int, products: int, forward_mode: int
) -> None:
    expected = {"backward": gradients, "hessian_products": products, "forward_mode": forward_mode}
    assert analysis_cost.Work(TASKS, recipe).passes(name) == expected


@pytest.mark.slow
@pytest.mark.parametrize("recipe", analysis_cost.RECIPES)
def test_second_derivatives_need_one_product_for_each_task(recipe: str) -> None:
    passes = analysis_cost.Work(TASKS, recipe).passes("mixed_second_derivatives")
    assert passes["hessian_products"] == 1 and passes["forward_mode"] == 0


@pytest.mark.slow
def test_logged_steps_are_compared_with_the_others(configs: None) -> None:
    found = analysis_cost.logging_cost(steps=7, every=2)
    plain, logged = found["seconds"]
    assert min(plain, logged) > 0 and found["slowdown"] == (logged - plain) / (2 * plain)


def test_the_table_has_the_numbers_of_the_file() -> None:
    row = {"passes": {"backward": 1.0, "hessian_products": 0.0, "forward_mode": 2.5}, "seconds": 0.5}
    text = table.section(
        {
            "tasks": 20,
            "rounds": 3,
            "recipes": {"joint": {"cosine": row}},
            "logging": {
                "steps": 1000,
                "every": 100,
                "slowdown": 0.021,
                "seconds": [0.005, 0.0155],
            },
            "hardware": {"device": "a processor", "threads": 2},
            "versions": {"torch": "2.13"},
        }
    )
    assert (
        "| none | `cosine(gradients)` | 0.50 | 1 | 0 | 2.5 |" in text
        and "5.0 ms for a step, 15.5 ms" in text
    )
