"""The curves of `experiments.curves` are those of the saved models, adapted for longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import curves
from experiments.tables import __main__ as tables
from experiments.utils.configs import compose
from experiments.utils.streams import TEST, stream
from metamtl import Recipe, adaptation_curve, engines, load
from metamtl.adapters import with_steps

from .results import VMAP

Overrides = Callable[..., list[str]]
FEW = ("experiment=sinusoid_record", "steps=2", "meta_batch=2", "validate.times=1", VMAP)


def ran(overrides: list[str], folder: Path) -> dict[str, Any]:
    return curves.run(compose("curves", overrides), overrides, folder)


def test_curves_are_those_of_the_saved_models(overrides: Overrides, tmp_path: Path) -> None:
    given = [*overrides(*FEW), "run=[metasgd]", "shots=[3]", "seeds=[0,1]", "tune={inner.lr:[0.1]}"]
    folder = tmp_path / "waves"
    table = ran(given, folder)
    assert [(row["method"], row["shots"]) for row in table["rows"]] == [("metasgd", 3)]
    for row in table["rows"]:
        values = []
        for seed in (0, 1):
            place = folder / f"{row['method']}_3shot" / "inner.lr=0.1" / f"seed{seed}"
            model, recipe, source, _ = load(place)
            split = source.split("test")
            episodes = split.sample(4, stream(seed, TEST))
            recipe = Recipe(with_steps(recipe.adapter, 10))
            found = adaptation_curve(
                model, recipe, episodes, split.loss, metrics=split.metrics, engine=engines.Vmap()
            )
            values.append(torch.tensor([stage["mse"].mean for stage in found], dtype=torch.float64))
        expected = torch.stack(values).mean(0).tolist()
        assert [stage["mean"] for stage in row["curve"]] == pytest.approx(expected, abs=1e-12)
        assert len(row["curve"]) == 11 and row["steps"] == 2
    assert (folder / "curves.png").is_file()
    assert ran(given, folder) == table  # runs that have a result are read
    text = tables.block(tmp_path)
    assert "### waves" in text and (folder / "curves.md").read_text(encoding="utf-8").strip() in text


def test_a_curve_has_the_strategy_of_the_training(overrides: Overrides, tmp_path: Path) -> None:
    given = [*overrides(*FEW, "adapt=regression"), "run=[maml]", "shots=[3]", "tune={}"]
    with pytest.raises(
        ValueError, match=r"maml has the adaptation strategies none, all, .*adapt=as_trained"
    ):
        ran(given, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tune", "trains"), [("tune={inner.lr: [1e30]}", False), ("tune={inner.lr: [30.0]}", True)]
)
def test_steps_after_which_a_task_diverges(
    tune: str, trains: bool, overrides: Overrides, tmp_path: Path
) -> None:
    """The larger rate ends the training, the smaller one is too large for the tenth step."""
    given = [*overrides(*FEW), "run=[maml]", "shots=[3]", "seeds=[0]", tune]
    (row,) = ran(given, tmp_path / "waves")["rows"]
    kinds = ["diverged" in stage for stage in row["curve"]]
    assert len(kinds) == 11 and kinds == sorted(kinds) and kinds[-1]
    assert kinds.count(False) >= 2 if trains else all(kinds)
    assert row["curve"][-1] == {"diverged": [0]} and (row["seconds"] is not None) == trains
    assert "| diverged (1) |" in (tmp_path / "waves" / "curves.md").read_text("utf-8")
