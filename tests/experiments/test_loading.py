"""A finished training can be loaded, and its model gives the recorded results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import load_file

from experiments import train
from experiments.utils.measure import as_dicts, measure
from experiments.utils.streams import TEST, stream
from metamtl import Recipe, engines, evaluate, load
from metamtl.loading import resolve

from .results import VMAP

Compose = Callable[..., DictConfig]


@pytest.mark.parametrize("recipe", ["maml", "mtl"])
def test_the_saved_model_gives_the_same_results(recipe: str, composed: Compose, tmp_path: Path) -> None:
    cfg = composed(f"recipe={recipe}", "steps=5", "test.tasks=8", VMAP)
    result = train.run(cfg, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    model = instantiate(cfg.net)
    model.load_state_dict({name: t for name, t in saved.items() if not name.startswith("adapter.")})
    own = {name.removeprefix("adapter."): t for name, t in saved.items() if name.startswith("adapter.")}
    resolve("net", model)
    adapter = instantiate(cfg.recipe).adapter
    adapter.load_state_dict(own)
    assert set(own) == set(adapter.state_dict()) and bool(own) == (recipe == "mtl")

    family = instantiate(cfg.task).split("test")
    way = Recipe(instantiate(cfg.adapt[result["adaptation"]["strategy"]]))
    new = family.sample(cfg.test.tasks, stream(cfg.seed, TEST))
    stage, engine = result["adaptation"]["steps"], engines.Vmap()
    assert as_dicts(measure(model, way, stage, family, new, engine=engine)[0]) == result["test"]
    if recipe == "mtl":  # its heads are those of the training classes
        assert result["test_as_trained"] is None
    else:
        trained = measure(model, Recipe(adapter), -1, family, new, engine=engine)[0]
        assert as_dicts(trained) == result["test_as_trained"]
    values = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))["test"]
    for metric, numbers in values.items():
        assert sum(numbers) / len(numbers) == pytest.approx(result["test"][metric]["mean"])


@pytest.mark.parametrize("trained", [True, False])
def test_a_finished_training_can_be_loaded(trained: bool, composed: Compose, tmp_path: Path) -> None:
    cfg = composed("experiment=glyphs_multitask", "steps=2", "validate.times=1")
    train.run(cfg, tmp_path)
    model, _, source, _ = load(tmp_path, trained=trained)
    saved = load_file(tmp_path / "model.safetensors")
    same = [torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items()]
    assert all(same) if trained else not any(same)
    assert source.split("test").loss.keys() == model.heads.keys()


@pytest.mark.parametrize("recipe", ["maml", "anil"])
def test_a_loaded_model_has_the_recorded_figure(recipe: str, composed: Compose, tmp_path: Path) -> None:
    train.run(composed(f"recipe={recipe}", "steps=5", "test.tasks=8", VMAP), tmp_path)
    model, loaded, source, result = load(tmp_path)
    split, seed = source.split("test"), result["config"]["seed"]
    episodes = split.sample(8, stream(seed, TEST))
    estimates = evaluate(model, loaded, episodes, split.loss, metrics=split.metrics, engine=engines.Vmap())
    recorded = result["test_as_trained"]
    assert {name: estimate.mean for name, estimate in estimates.items()} == {
        name: values["mean"] for name, values in recorded.items()
    }


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no result\.json; pass the output folder"):
        load(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="has no config"):
        load(tmp_path)
