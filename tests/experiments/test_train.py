"""Every committed config runs; what a run writes is whole, true and the same again."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import load_file

from experiments import train
from experiments.utils.configs import compose
from experiments.utils.measure import as_dicts, measure
from experiments.utils.streams import TEST, stream
from metamtl import Recipe, engines, evaluate, load
from metamtl.loading import resolve

ROOT = Path(__file__).resolve().parents[2]
EVERY, RECIPES = (
    sorted(path.stem for path in (Path(train.CONF) / group).glob("*.yaml"))
    for group in ("experiment", "recipe")
)
PAPERS = [name for name in EVERY if name.endswith("_paper")]  # published protocols, which are larger
EXPERIMENTS = [name for name in EVERY if name not in PAPERS]
Compose = Callable[..., DictConfig]
VMAP = "engine={_target_: metamtl.engines.Vmap}"  # repeats bit for bit; Auto chooses by the clock
KEYS = {
    "adaptation",
    "batchnorm",
    "compile_seconds",
    "config",
    "curve",
    "gradient_evaluations",
    "skipped_steps",
    "stopped_by",
    "hardware",
    "history",
    "interval",
}
KEYS |= {
    "test_as_trained",
    "test_by_batchnorm",
    "transductive",
    "processes",
    "parameters",
    "seconds",
    "seeds",
    "seen",
    "steps",
    "test",
    "validation",
    "versions",
}


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def read(folder: Path) -> dict[str, Any]:
    text = (folder / "result.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=no_constant)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """Without what a clock says."""
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in result["history"]]
    times = {"seconds", "compile_seconds"}
    return {**{k: v for k, v in result.items() if k not in times}, "history": history}


def check_estimates(estimates: dict[str, Any]) -> None:
    assert estimates
    for name, found in estimates.items():
        assert set(found) == {"mean", "ci95", "n", "worst_decile", "num_missing"}, name
        assert found["num_missing"] >= 0, name
        assert math.isfinite(found["mean"]), name
        if found["n"] > 1:  # a measure with one value for the whole set has no interval
            assert found["ci95"] >= 0, name
        else:
            assert found["ci95"] is None, name
        if name.endswith("accuracy"):
            assert 0 <= found["worst_decile"] <= found["mean"] <= 1
        if name.endswith("mse"):
            assert 0 <= found["mean"] <= found["worst_decile"]


def check(result: dict[str, Any], metric: str) -> None:
    assert set(result) == KEYS
    assert {"python", "torch", "metamtl"} <= set(result["versions"])
    assert {"device", "cores", "threads"} <= set(result["hardware"])
    assert (
        result["steps"] >= 1 and result["seconds"] > 0 and result["gradient_evaluations"] >= result["steps"]
    )
    assert isinstance(result["seeds"][0], int) and isinstance(result["batchnorm"], str)
    for split in ("validation", "seen", "test"):
        assert metric in result[split]
        check_estimates(result[split])
    stage = result["adaptation"]["steps"]
    assert result["curve"][stage] == result["test"]
    for entry in result["history"]:
        assert math.isfinite(entry["train_loss"]) and math.isfinite(entry["validation"])


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment: str, composed: Compose, tmp_path: Path) -> None:
    cfg = composed(f"experiment={experiment}", "steps=2", "meta_batch=2")
    returned = train.run(cfg, tmp_path)
    result = read(tmp_path)
    check(result, cfg.metric)
    assert result["steps"] == 2
    assert result["test"][cfg.metric]["mean"] == returned["test"][cfg.metric]["mean"]
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PAPERS)
def test_every_published_protocol_runs(experiment: str, composed: Compose, tmp_path: Path) -> None:
    small = (
        "steps=2",
        "meta_batch=2",
        "validate.times=1",
        "patience=null",
        "task.queries=1",
        "net.hidden=8",
    )
    few = [] if "protonet" in experiment else ["adapt.trained.steps=2"]  # up to 50 steps at test
    loop = "engine={_target_: metamtl.engines.Loop}"
    cfg = composed(f"experiment={experiment}", *small, *few, loop)
    train.run(cfg, tmp_path)
    check(read(tmp_path), "accuracy")


def test_published_protocols(composed: Compose) -> None:
    """The numbers that decide whether a published result can be reproduced."""
    for name in PAPERS:
        cfg = compose("train", [f"experiment={name}"])
        ways, shots = (int(re.findall(rf"(\d+){what}", name)[0]) for what in ("way", "shot"))
        assert (cfg.task.ways, cfg.task.shots, cfg.metric) == (ways, shots, "accuracy")
        text = (Path(train.CONF) / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        assert "# Published: " in text
        if name.startswith("omniglot") and "maml" in name:
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
    small = ("steps=2", "meta_batch=2", "+net.hidden=8")
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


@pytest.mark.parametrize("recipe", ["maml", "mtl", "joint_pcgrad"])
def test_a_seed_gives_the_same_result_again(recipe: str, composed: Compose, tmp_path: Path) -> None:
    settings = (f"recipe={recipe}", "steps=5", "meta_batch=4", VMAP)
    first, again = (train.run(composed(*settings), tmp_path / name) for name in ("first", "again"))
    assert timeless(first) == timeless(again)
    other = train.run(composed(*settings, "seed=1"), tmp_path / "other")
    assert other["history"][0]["train_loss"] != first["history"][0]["train_loss"]


def test_no_two_streams_are_alike() -> None:
    drawn = {
        (seed, kind, step): float(torch.rand((), generator=stream(seed, kind, step)))
        for seed in (0, 1, 2, 2**20)
        for kind in range(5)
        for step in (0, 1, 2, 60_000)
    }
    assert len(set(drawn.values())) == len(drawn)
    assert drawn[1, 2, 2] == float(torch.rand((), generator=stream(1, 2, 2)))


def test_no_episode_is_met_in_two_places(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metamtl.tasks import Sinusoid

    drawn: list[float] = []
    sample = Sinusoid.sample

    def spy(family: Sinusoid, num_tasks: int, rng: torch.Generator) -> Any:
        episode = sample(family, num_tasks, rng)
        drawn.extend(episode.support.x[:, 0, 0].tolist())
        return episode

    monkeypatch.setattr(Sinusoid, "sample", spy)
    for seed in (0, 1):
        train.run(composed("steps=2", f"seed={seed}"), tmp_path / str(seed))
    assert len(drawn) == 2 * (2 * 25 + 4 * 4)
    assert len(set(drawn)) == len(drawn)


def test_a_time_limit_ends_a_run_well(composed: Compose, tmp_path: Path) -> None:
    train.run(composed("steps=1000000", "max_minutes=0.02"), tmp_path)
    result = read(tmp_path)
    check(result, "mse")
    assert 1 <= result["steps"] < 1_000_000 and 0 < result["seconds"] < 10
    assert result["history"]
    assert (tmp_path / "model.safetensors").is_file()


def test_the_budget_of_gradient_evaluations_ends_a_run(composed: Compose, tmp_path: Path) -> None:
    result = train.run(composed("steps=null", "gradient_evaluations=400", "meta_batch=10"), tmp_path)
    assert (
        result["gradient_evaluations"] == 420
    )  # a task costs 3: two for the inner step, one for the query
    assert result["steps"] == 14


@pytest.mark.parametrize(
    ("setting", "step"), [("inner.lr=1e30", 0), ("optimizer.lr=1e30", 1)], ids=["inner", "outer"]
)
def test_a_loss_that_is_not_finite_names_the_step(
    setting: str, step: int, composed: Compose, tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError, match=rf"^step {step}: .* not finite"):
        train.run(composed(setting, "inner.steps=3", "steps=20"), tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_the_command(tmp_path: Path) -> None:
    few = (
        "steps=2",
        "validate.tasks=4",
        "select.tasks=4",
        "test.tasks=4",
        "max_minutes=1",
        "data_dir=data",
    )
    command = [
        "-m",
        "experiments.train",
        "experiment=sinusoid",
        "seed=3",
        *few,
        f"hydra.run.dir={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = read(tmp_path)
    check(result, "mse")
    assert result["seeds"] == [3]
    assert f"{result['test']['mse']['mean']:.4f}" in done.stdout
    assert str(tmp_path / "result.json") in done.stdout


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
    for name, tensor in load(tmp_path).model.state_dict().items():
        assert torch.equal(tensor, saved[name])


def test_a_schedule_takes_the_rate_to_zero(composed: Compose, tmp_path: Path) -> None:
    few = ("steps=4", "validate.times=4", "optimizer.lr=0.05", VMAP)
    still, falling = (
        train.run(composed(*few, f"schedule={name}"), tmp_path / name)["history"]
        for name in ("constant", "cosine")
    )
    # The first of four steps is the same; the last goes less far.
    assert still[0]["validation"] == falling[0]["validation"]
    gaps = [abs(run[3]["validation"] - run[2]["validation"]) for run in (falling, still)]
    assert 0 < gaps[0] < gaps[1] / 2


def test_averaged_weights_are_those_that_are_tested(composed: Compose, tmp_path: Path) -> None:
    few = ("steps=2", "validate.times=2", "optimizer.lr=0.05", "seed=3", "recipe=joint", VMAP)
    last, averaged = (
        train.run(composed(*few, f"average={kept}"), tmp_path / str(kept))["history"] for kept in (0, 0.75)
    )
    # The average begins with the first step's weights, and then moves less far.
    assert last[0]["validation"] == averaged[0]["validation"]
    gaps = [abs(run[1]["validation"] - run[0]["validation"]) for run in (averaged, last)]
    assert 0 < gaps[0] < gaps[1]
