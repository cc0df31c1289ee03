"""Published accuracies beside those measured here."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.tables.compare import markdown
from experiments.tables.published import PUBLISHED, published
from metamtl import recipes, tasks


def row(recipe: str, new: float, as_trained: float | None, **more: Any) -> dict[str, Any]:
    same = {key: {"mean": new, "ci95": 0.01} for key in ("seen", "new", "worst_tenth")}
    own = None if as_trained is None else {"mean": as_trained, "ci95": 0.01}
    return {"recipe": recipe, **same, "as_trained": own, "adaptation": [], "to_best": None,
            "gradient_evaluations": 1, "steps": 1, "seconds": 1.0, **more}  # fmt: skip


def table(*rows: dict[str, Any]) -> str:
    return markdown(
        {
            "experiment": {"metric": "accuracy", "gradient_evaluations": 1, "max_minutes": None},
            "rows": rows,
            "hardware": {"device": "a processor", "threads": 1},
            "versions": {"torch": "2.13"},
            "seeds": [0],
            "interval": "none",
            "batchnorm": "none",
        }
    )


def test_the_difference_is_that_of_the_own_adaptation() -> None:
    text = table(row("maml", 0.6, 0.57, published=58.9), row("mtl", 0.6, None, published=None))
    head, _, maml, mtl, *_ = text.splitlines()
    column = head.split(" | ").index("published (difference)")
    assert maml.split(" | ")[column] == "58.9 (-1.9)" and mtl.split(" | ")[column] == "-"
    assert "minus the published one" in text
    assert "published" not in table(row("mtl", 0.6, None, published=None)).lower()


def test_it_depends_on_data_ways_shots_and_recipe() -> None:
    task = OmegaConf.create({"_target_": "metamtl.tasks.CIFARFS", "ways": 5, "shots": 5})
    OmegaConf.set_struct(task, True)
    assert published(task, "protonet") == 72.0 and published(task, "mtl") is None
    task.ways = 20
    assert published(task, "protonet") is None
    assert published({"_target_": "metamtl.tasks.Sinusoid", "shots": 5}, "maml") is None


@pytest.mark.parametrize("place", PUBLISHED, ids=str)
def test_the_names_are_those_of_tasks_and_recipes(place: tuple[str, int, int]) -> None:
    assert hasattr(tasks, place[0])
    assert all(hasattr(recipes, name) for name in PUBLISHED[place])
