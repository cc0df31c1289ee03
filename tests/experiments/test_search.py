"""A search selects on validation with seeds of its own, and tests once; sweeps run and are collected."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir

from experiments import search as command
from experiments.tables.report import write_json
from experiments.utils import collect, configs, options
from experiments.utils.search import Interval, Search, at_random, by_optuna, grid
from metamtl.__main__ import main as metamtl

Overrides = Callable[..., list[str]]
SPACE = {"inner.lr": Interval(1e-3, 1.0, True), "optimizer.lr": [1e-3, 1e-2], "inner.steps": Interval(1, 3)}


def searcher(method: str, trials: int | None, space: dict[str, Any] | None = None) -> Search:
    found = Search.__new__(Search)
    found.space, found.method, found.trials, found.seed = space or SPACE, method, trials, 0
    return found


def test_a_grid_has_every_combination() -> None:
    points = list(grid({"a": [1, 2], "b": ["x", "y", "z"]}))
    assert len(points) == 6 and points[0] == {"a": 1, "b": "x"} and points[-1] == {"a": 2, "b": "z"}


@pytest.mark.parametrize("method", [at_random, by_optuna])
def test_points_lie_in_the_space_and_repeat(method: Any) -> None:
    def points(seed: int) -> list[dict[str, Any]]:
        search = method(SPACE, 30, seed)
        found = [next(search)]
        while len(found) < 30:
            found.append(search.send(-len(found)))
        return found

    first = points(0)
    assert first == points(0) != points(1)
    assert all(1e-3 <= point["inner.lr"] <= 1 and point["optimizer.lr"] in (1e-3, 1e-2) for point in first)
    assert {point["inner.steps"] for point in first} == {1, 2, 3}
    assert {type(point["inner.steps"]) for point in first} == {int}
    if method is at_random:  # log-uniform: as many below 0.03 as above
        below = sum(point["inner.lr"] < 10**-1.5 for point in at_random(SPACE, 2000, 0))
        assert 900 < below < 1100


def test_optuna_learns_from_scores() -> None:
    space = {"x": Interval(-10.0, 10.0)}
    trials = {
        m: searcher(m, 60, space).run(lambda point: -((point["x"] - 3) ** 2)) for m in ("optuna", "random")
    }
    late = {m: [abs(point["x"] - 3) for point, _ in found[30:]] for m, found in trials.items()}
    assert sum(late["optuna"]) < sum(late["random"]) / 2
    failing = searcher("optuna", 5, space).run(lambda point: -math.inf)
    assert len(failing) == 5


def test_examples_have_both_ends_of_every_interval() -> None:
    examples = searcher("optuna", 5).examples()
    assert {point["inner.lr"] for point in examples} == {1e-3, 1.0}
    assert {point["optimizer.lr"] for point in examples} == {1e-3, 1e-2}
    assert len(searcher("random", 7).examples()) == 7


FEW = ("steps=2", "meta_batch=3", "validate.times=1", "engine={_target_: metamtl.engines.Vmap}")
TUNE = "tune={inner.lr:{low:1e-3,high:1.0,log:true},optimizer.lr:[1e-3,1e-2]}"


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_the_search_selects_on_validation_and_tests_once(
    method: str, overrides: Overrides, tmp_path: Path
) -> None:
    every = [*overrides(*FEW), TUNE, f"search.method={method}", "search.trials=3", "seeds=[0,1]"]
    cfg = configs.compose("search", every)
    table = command.run(cfg, every, tmp_path)
    assert table["best"] == min(table["trials"], key=lambda trial: trial["validation"])["values"]
    of_seed = {
        seed: [json.loads(path.read_text()) for path in tmp_path.glob(f"*/seed{seed}/result.json")]
        for seed in (0, 1, 100)
    }
    assert {seed: len(results) for seed, results in of_seed.items()} == {0: 1, 1: 1, 100: 3}
    means = [of_seed[seed][0]["test"]["mse"]["mean"] for seed in (0, 1)]
    assert table["test"]["mean"] == pytest.approx(sum(means) / 2)
    assert json.loads((tmp_path / "search.json").read_text())["best"] == table["best"]
    assert "**" in (tmp_path / "search.md").read_text(encoding="utf-8")
    assert command.run(configs.compose("search", every), every, tmp_path)["trials"] == table["trials"]


def test_a_search_that_cannot_work_does_not_start(overrides: Overrides, tmp_path: Path) -> None:
    for more, message in (
        (["seeds=[100]", TUNE], "seeds and tune_seeds both have 100"),
        (["tune={net.hiden:[1]}"], "net.hiden"),
        (["tune={optimizer.lr:[1e-3,-1.0]}", "search.method=grid", "search.trials=null"], "learning rate"),
    ):
        every = [*overrides(*FEW), *more]
        with pytest.raises(options.OptionError, match=message):
            command.run(configs.compose("search", every), every, tmp_path)
    assert not list(tmp_path.iterdir())


def job(folder: Path, number: int, test: float, *overrides: str) -> None:
    figures = {"mse": {"mean": test, "ci95": 0.1}}
    seed = next(int(text.partition("=")[2]) for text in overrides if text.startswith("seed="))
    result = {"config": {"metric": "mse", "seed": seed}, "validation": figures, "test": figures}
    write_json(folder / str(number) / "result.json", result)
    (folder / str(number) / ".hydra").mkdir()
    text = "".join(f"- {override}\n" for override in overrides)
    (folder / str(number) / ".hydra" / "overrides.yaml").write_text(text, encoding="utf-8")


def test_collect_means_over_seeds_and_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (recipe, seed) in enumerate([("maml", 0), ("maml", 1), ("anil", 0)]):
        job(tmp_path, number, number + 1.0, f"recipe={recipe}", f"seed={seed}", "steps=3")
    (tmp_path / "3" / ".hydra").mkdir(parents=True)
    (tmp_path / "3" / ".hydra" / "overrides.yaml").write_text("[]\n", encoding="utf-8")
    table = collect.collect(tmp_path)
    assert table["varied"] == ["recipe"] and table["unfinished"] == ["3"]
    maml, anil = table["rows"]
    assert maml["options"] == {"recipe": "maml"} and maml["seeds"] == [0, 1]
    assert maml["test"]["mean"] == 1.5 and maml["test"]["ci95"] == pytest.approx(6.3531, abs=1e-3)
    assert anil["test"] == {"mean": 3.0, "ci95": 0.1}
    assert metamtl(["collect", str(tmp_path)]) == 0
    assert "| anil | 3.0000 ± 0.1000 | 3.0000 ± 0.1000 | 0 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "collect.json").read_text())["rows"] == table["rows"]
    job(tmp_path, 4, 5.0, "recipe=maml", "seed=0", "steps=3")
    with pytest.raises(options.OptionError, match="seed 0 is there twice"):
        collect.collect(tmp_path)
    with pytest.raises(options.OptionError, match="has no finished training"):
        collect.collect(tmp_path / "3")
    with pytest.raises(options.OptionError, match="is not a folder"):
        collect.collect(tmp_path / "none")


def test_collect_beside_a_training_that_deletes_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(tmp_path, 0, 1.0, "recipe=maml", "seed=0")
    vanished = tmp_path / "1" / ".step-000000005.safetensors.abc.partial"
    vanished.mkdir(parents=True)
    scan = os.scandir

    def scandir(path: str | Path = ".") -> Any:
        if Path(path) == vanished:  # listed by its parent, and gone when its turn comes
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(collect.collect(tmp_path)["rows"]) == 1


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("processes", "joblib_launcher.JoblibLauncher"),
        ("slurm", "submitit_launcher.SlurmLauncher"),
        ("slurm_local", "submitit_launcher.LocalLauncher"),
        ("ray_cluster", "ray_launcher.RayLauncher"),
    ],
)
def test_the_launchers_compose(name: str, target: str) -> None:
    import hydra

    with initialize_config_dir(version_base=None, config_dir=configs.CONF):
        cfg = hydra.compose("train", [f"hydra/launcher={name}"], return_hydra_config=True)
    assert cfg.hydra.launcher._target_.endswith(target)


@pytest.mark.slow
def test_a_sweep_runs_and_is_collected(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    small = (
        "steps=2",
        "meta_batch=3",
        "validate.times=1",
        "validate.tasks=4",
        "select.tasks=4",
        "test.tasks=4",
    )
    sweep = ("-m", "hydra/launcher=processes", "recipe=maml,joint", "device=cpu")
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "metamtl", "train", *sweep, *small, "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    table = collect.collect(tmp_path / "sweep")
    assert table["varied"] == ["recipe"] and [row["seeds"] for row in table["rows"]] == [[0], [0]]
    assert not table["unfinished"]
