"""Every committed config runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from experiments import train
from experiments.utils import options
from experiments.utils.configs import compose
from metamtl import load

from .results import check, read

EVERY, RECIPES = (
    sorted(path.stem for path in (Path(train.CONF) / group).glob("*.yaml"))
    for group in ("experiment", "recipe")
)
PAPERS = [name for name in EVERY if name.endswith("_paper")]  # published protocols, which are larger
RUN = [
    name for name in PAPERS if re.search("_5way_1shot_(protonet|reptile)|omniglot_5way_1shot_maml", name)
]
EXPERIMENTS = [name for name in EVERY if name not in PAPERS]
Compose = Callable[..., DictConfig]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment: str, composed: Compose, tmp_path: Path) -> None:
    few = ["validate.tasks=2", "net.hidden=8"] if experiment.startswith("methods_") else []
    cfg = composed(f"experiment={experiment}", "steps=2", "meta_batch=2", "max_minutes=null", *few)
    returned = train.run(cfg, tmp_path)
    result = read(tmp_path)
    check(result, cfg.metric)
    assert result["steps"] == 2
    assert result["test"][cfg.metric]["mean"] == returned["test"][cfg.metric]["mean"]
    assert list(tmp_path.glob("events.out.tfevents.*"))


# One of each kind; the others differ in numbers, which `test_published_protocols` checks.
@pytest.mark.slow
@pytest.mark.parametrize("experiment", RUN)
def test_published_protocols_run(experiment: str, composed: Compose, tmp_path: Path) -> None:
    small = (
        "steps=2",
        "meta_batch=2",
        "validate.times=1",
        "patience=null",
        "task.queries=1",
        "net.hidden=8",
    )
    trained = re.search("_(maml|reptile)_", experiment)
    few = ["adapt.trained.steps=2"] if trained else []  # up to 50 steps at test
    loop = "engine={_target_: metamtl.engines.Loop}"
    cfg = composed(f"experiment={experiment}", *small, *few, loop)
    train.run(cfg, tmp_path)
    check(read(tmp_path), "accuracy")


def test_published_protocols(composed: Compose) -> None:
    """The numbers that decide whether a published result can be reproduced."""
    for name in PAPERS:
        cfg = compose("train", [f"experiment={name}"])
        options.check(cfg, "train")
        ways, shots = (int(re.findall(rf"(\d+){what}", name)[0]) for what in ("way", "shot"))
        assert (cfg.task.ways, cfg.task.shots, cfg.metric) == (ways, shots, "accuracy")
        text = (Path(train.CONF) / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        assert "# Published: " in text
        if "mamlpp" in name:
            assert (cfg.task.rotations, cfg.train_task.rotations) == ("none", "episode")
            assert (cfg.net.batchnorm, cfg.net.steps, cfg.recipe.steps) == ("per_step", 5, 5)
            assert cfg.inner.lr == 0.1 and cfg.recipe.multi_step_until == 10 * 500
            assert cfg.steps == 100 * 500 == 500 * cfg.validate.times
            assert (cfg.meta_batch, cfg.task.queries, cfg.test.tasks) == (8, 1, 600)
            assert cfg.schedule.T_max == cfg.steps and cfg.schedule.eta_min == 1e-5
        if name.startswith("omniglot") and "_maml_" in name:
            # The authors sum the loss over the ways: 5 * 0.4 and 20 * 0.1.
            assert cfg.inner.lr == ways * {5: 0.4, 20: 0.1}[ways] and cfg.task.queries == shots
            assert cfg.test.tasks == 600 and cfg.adapt.trained.steps == {5: 3, 20: 5}[ways]
        if name.startswith("omniglot") and "protonet" in name:
            assert (cfg.task.protocol, cfg.task.rotations, cfg.train_task.ways) == (
                "vinyals",
                "classes",
                60,
            )


# joint_nuclear needs towers (see the ways of sharing below), cavia a context.
@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [recipe for recipe in RECIPES if recipe not in ("joint_nuclear", "cavia")]
)
def test_every_recipe_runs(recipe: str, composed: Compose, tmp_path: Path) -> None:
    small = ("steps=2", "meta_batch=2", "+net.hidden=8", "adapt=prototype")
    cfg = composed("experiment=glyphs_5way_1shot", f"recipe={recipe}", *small)
    train.run(cfg, tmp_path)
    result = read(tmp_path)
    check(result, "accuracy")
    assert result["batchnorm"].startswith("transductive")
    assert len(result["history"]) == 2 and result["test"]["accuracy"]["n"] == 4


@pytest.mark.slow
def test_a_context_is_adapted(composed: Compose, tmp_path: Path) -> None:
    cfg = composed("net=mlp_context", "recipe=cavia", "steps=2", "meta_batch=2", "inner.lr=1.0")
    train.run(cfg, tmp_path)
    check(read(tmp_path), "mse")


@pytest.mark.parametrize(
    "changes",
    [
        ["net=mlp_soft", "recipe=joint_nuclear"],
        *(["net=" + name] for name in ("mlp_cross_stitch", "mlp_mmoe", "mlp_dselect_k", "mlp_ple")),
        ["net=mlp_cooperative"],
        ["net=adult_cascade"],
    ],
    ids=str,
)
def test_every_way_of_sharing_runs(changes: list[str], composed: Compose, tmp_path: Path) -> None:
    cfg = composed("experiment=adult", "steps=2", "meta_batch=8", "validate.times=1", *changes)
    assert train.run(cfg, tmp_path)["steps"] == 2
    saved = load_file(tmp_path / "model.safetensors")
    state = torch.get_rng_state()
    loaded = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, saved[name])
