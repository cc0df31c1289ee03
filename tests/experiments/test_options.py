"""Wrong options and missing packages end an experiment before the first training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from experiments import compare, grid, multitask, new_task, train
from experiments.utils import parts
from experiments.utils.configs import compose
from experiments.utils.progress import Clock, Progress
from experiments.utils.state import TrainingState
from metamtl import engines

Compose = Callable[..., DictConfig]
Overrides = Callable[..., list[str]]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "meta_backward", lambda *_, **__: pytest.fail("a training was started"))


def table(module: Any, overrides: Overrides, folder: Path, *own: str) -> Any:
    """Run an experiment that trains several times, on sine waves or on letters."""
    names = {compare: ("compare", "sinusoid"), grid: ("grid", "grid_sinusoid")}
    name, experiment = names.get(module, ("multitask", "glyphs_multitask"))
    every = [*overrides(f"experiment={experiment}", "steps=2", "meta_batch=4", "validate.times=1"), *own]
    return module.run(compose(name, every), every, folder)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("steps=-5", "steps=-5: expected a positive integer, or null"),
        ("steps=0", "steps=0: expected a positive integer, or null"),
        ("steps=1.5", "steps=1.5: expected a positive integer"),
        ("steps=many", "steps=many: expected a positive integer"),
        ("steps=null", "training would never end"),
        ("gradient_evaluations=-1", "gradient_evaluations=-1: expected a positive integer"),
        ("max_minutes=0", "max_minutes=0: expected a positive number"),
        ("meta_batch=0", "meta_batch=0: expected a positive integer"),
        ("validate.times=none", "validate.times=none: expected a positive integer"),
        ("test.tasks=-1", "test.tasks=-1: expected a positive integer"),
        ("optimizer.lr=abc", "optimizer.lr=abc: torch.optim.Adam expects float"),
        ("inner.lr=abc", "inner.lr=abc: expected a number"),
        ("optimizer.lr=-1", r"optimizer=.* cannot be built: ValueError: Invalid learning rate"),
        (
            "optimizer.momentum=0.9",
            r"optimizer.momentum: torch.optim.Adam has no option 'momentum'; there are",
        ),
        ("recipe.differentiation=third", r"recipe=.* cannot be built: ValueError: .*third"),
        ("net.layers=3", r"net.layers: metamtl.nets.mlp has no option 'layers'"),
        ("engine=Vmap", "engine=Vmap: expected a mapping with _target_"),
        ("adapt.all.steps=-1", r"adapt.all=.* cannot be built"),
        ("average=1", "average=1: expected a decay"),
        ("seed=-1", "seed=-1: expected a non-negative integer"),
        ("metric=acc", "metric=acc: Sinusoid has no such metric; it has mse"),
        ("metric=delta_m", "metric=delta_m: Sinusoid has no such metric"),
    ],
)
def test_a_training_does_not_start(
    option: str, message: str, composed: Compose, tmp_path: Path, no_training: None
) -> None:
    with pytest.raises(ValueError, match=message):
        train.run(composed(option), tmp_path)
    assert not list(tmp_path.iterdir())


def test_transductive_methods_can_be_forbidden(
    composed: Compose, tmp_path: Path, no_training: None
) -> None:
    forbidden = ("experiment=glyphs_5way_1shot", "transductive=false")
    with pytest.raises(ValueError, match=r"recipe=.* is transductive: it reads all query inputs"):
        train.run(composed(*forbidden, "recipe=tim"), tmp_path)
    with pytest.raises(ValueError, match=r"adapt\.tim=.* is transductive"):
        train.run(composed(*forbidden, "+adapt.tim={_target_: metamtl.adapters.TIM}"), tmp_path)


def test_a_recipe_that_needs_queries_ends_a_comparison_before_the_first_training(
    overrides: Overrides, tmp_path: Path, no_training: None
) -> None:
    with pytest.raises(ValueError, match="validation and test are measured on queries"):
        table(compare, overrides, tmp_path, "task.queries=0")
    without = ("train_task={queries: 0}", "recipes=[reptile,maml]")
    with pytest.raises(ValueError, match="the query set is empty") as caught:
        table(compare, overrides, tmp_path, *without, "steps=null", "max_minutes=1")
    assert "recipe={'_target_': 'metamtl.recipes.maml'" in caught.value.__notes__[0]
    assert not list(tmp_path.iterdir())


def test_metrics_of_named_tasks(composed: Compose, tmp_path: Path, no_training: None) -> None:
    experiment = "experiment=glyphs_multitask"
    with pytest.raises(ValueError, match=r"metric=acc: .* it has .*case/accuracy"):
        train.run(composed(experiment, "metric=acc"), tmp_path)
    with pytest.raises(ValueError, match="metric=delta_m compares with single tasks; set reference"):
        train.run(composed(experiment, "metric=delta_m"), tmp_path)
    with pytest.raises(ValueError, match="metric=case/mse"):
        train.run(composed(experiment, "metric=delta_m", "reference={case/mse:1.0}"), tmp_path)


def test_an_engine_that_cannot_run_named_tasks(
    composed: Compose, tmp_path: Path, no_training: None
) -> None:
    with pytest.raises(ValueError, match=r"engine=Vmap.*named tasks"):
        train.run(
            composed("experiment=glyphs_multitask", "engine={_target_: metamtl.engines.Vmap}"), tmp_path
        )


@pytest.mark.parametrize("module", [compare, grid, multitask])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("seeds=3", r"seeds=3: expected a list of .*seeds.* For a single one: seeds=\[3\]"),
        ("seeds=[]", "with at least one entry"),
        ("seeds=[1,1]", "1 is in the list twice"),
        ("seeds=[one]", r"seeds=\['one'\]: expected a list of different seeds"),
        ("steps=-5", "steps=-5"),
        ("metric=acc", "metric=acc"),
        ("optimizer.lr=abc", "optimizer.lr=abc"),
    ],
)
def test_tables_check_the_options_that_they_share(
    module: Any, option: str, message: str, overrides: Overrides, tmp_path: Path, no_training: None
) -> None:
    with pytest.raises(ValueError, match=message):
        table(module, overrides, tmp_path, option)


@pytest.mark.parametrize(
    ("module", "option", "message"),
    [
        (compare, "recipes=[]", "with at least one entry"),
        (compare, "recipes=[maml,maml]", "maml is in the list twice"),
        (compare, "recipes=maml", r"recipes=maml: expected a list.* For a single one: recipes=\[maml\]"),
        (multitask, "run=[equal,equal]", "equal is in the list twice"),
        (multitask, "tune_seeds=100", "tune_seeds=100: expected a list"),
        (multitask, "tune={optimizer.lr:1e-3}", r"optimizer.lr=0.001: expected a list of values"),
        (multitask, "tune=0.1", "tune=0.1: expected a mapping from options"),
        (
            multitask,
            "++tune={optimzer.lr:[1e-3]}",
            "optimzer.lr is not an option; did you mean 'optimizer'",
        ),
        (
            multitask,
            "++methods.equal={recpie:joint}",
            "methods.equal has 'recpie', .*did you mean 'recipe'",
        ),
        (grid, "inner_steps=3", r"inner_steps=3: expected a list of .*inner_steps=\[3\]"),
        (grid, "measures=[acc]", "metric=acc"),
        (grid, "tune={optimizer.lr:[abc]}", "optimizer.lr=abc: torch.optim.Adam expects float"),
    ],
)
def test_tables_check_their_own_options(
    module: Any, option: str, message: str, overrides: Overrides, tmp_path: Path, no_training: None
) -> None:
    with pytest.raises(ValueError, match=message):
        table(module, overrides, tmp_path, option)


MISSING = "{_target_: no_such_package.Aggregator}"
WRONG = "{_target_: metamtl.aggregators.CAGrad, constant: 0.5}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aggregator", "error", "message"),
    [
        (MISSING, ImportError, "No module named 'no_such_package'"),
        (WRONG, ValueError, "constant"),
    ],
)
def test_the_last_row_is_built_before_the_first_is_trained(
    aggregator: str,
    error: type[Exception],
    message: str,
    overrides: Overrides,
    tmp_path: Path,
    no_training: None,
) -> None:
    own = ("run=[equal,upgrad]", f"++methods.upgrad.recipe.aggregator={aggregator}", "tune=null")
    with pytest.raises(error, match=f"(?s)^methods.upgrad.recipe.aggregator.*{message}"):
        table(multitask, overrides, tmp_path, *own)
    with pytest.raises(error, match=message):
        table(grid, overrides, tmp_path, f"++aggregators.STCH={aggregator}")


def test_teachers_are_checked_before_the_single_tasks_are_trained(
    overrides: Overrides, tmp_path: Path, no_training: None
) -> None:
    own = ("run=[distilled]", "tune=null", "distillation.divergence.temperature=0")
    with pytest.raises(ValueError, match=r"^distilled, .*distillation=.* cannot be built"):
        table(multitask, overrides, tmp_path, *own)


def test_auto_knows_the_number_of_steps(composed: Compose, tmp_path: Path) -> None:
    def steps(*options: str) -> Iterator[int | None]:
        built = parts.build(composed("meta_batch=10", "validate.times=4", *options))
        for engine in (built.engine, built.evaluator):
            assert isinstance(engine, engines.Auto)
            yield engine.steps

    assert list(steps("steps=7")) == [7, 4]
    # A task costs two for the inner step and one for the query set.
    assert list(steps("steps=null", "gradient_evaluations=400")) == [14, 4]
    assert list(steps("steps=7", "gradient_evaluations=400")) == [7, 4]
    for limit in ("steps=null", "steps=7"):  # how many steps there are in three minutes is not known
        assert list(steps(limit, "max_minutes=3")) == [None, 4]
    named = parts.build(composed("engine={_target_: metamtl.engines.Vmap}"))
    assert named.engine is named.evaluator and isinstance(named.engine, engines.Vmap)


def test_compiling_and_validating_are_no_training_time(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Any
) -> None:
    step, choose = train.meta_backward, train.choose

    def compiling(*arguments: Any, engine: Any, **options: Any) -> Any:
        watch.now += 0.75  # of which 0.5 are spent on compiling
        engine.compile_seconds += 0.5
        return step(*arguments, engine=engine, **options)

    def slow(*arguments: Any) -> Any:
        watch.now += 10.0
        return choose(*arguments)

    monkeypatch.setattr(train, "meta_backward", compiling)
    monkeypatch.setattr(train, "choose", slow)
    result = train.run(composed("steps=4", "validate.times=2"), tmp_path)
    assert (result["compile_seconds"], result["seconds"]) == (2.0, 1.0)
    assert [entry["seconds"] for entry in result["history"]] == [0.5, 1.0]


def test_compiling_does_not_count_against_the_time_limit(composed: Compose, watch: Any) -> None:
    engine = engines.Auto()
    cfg = composed("steps=null", "max_minutes=0.01")
    progress = Progress(cfg, Clock(engine), TrainingState(parts.build(cfg), 0.0))
    watch.now += 0.7
    assert progress.decide().stop == "max_minutes"
    engine.compile_seconds = 0.7  # all of it was spent on compiling
    assert progress.decide().stop is None


def test_a_clock_is_the_wall_clock_without_compiling(watch: Any) -> None:
    engine, watch.now = engines.Auto(), 107.0
    for clock in (Clock(), Clock(None, engines.Vmap()), Clock(engine, engine)):
        assert clock() == 107
    engine.compile_seconds = 100.0
    assert clock() == 7 and clock.compile_seconds == 100


def test_a_new_task_names_the_runs_that_are_missing(configs: None, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no multitask.json; pass the folder of a finished"):
        new_task.run(compose("new_task", [f"multitask={tmp_path}"]), tmp_path / "new")
    rows = '{"rows": [{"tuned": {"intent": {}}}], "seeds": [0]}'
    (tmp_path / "multitask.json").write_text(rows, encoding="utf-8")
    given = [f"multitask={tmp_path}", "rows=[single_intent]", "seeds=[1]"]
    with pytest.raises(FileNotFoundError, match=r"no result.json in .*seed1; .*pass seeds=\[0\]"):
        new_task.run(compose("new_task", given), tmp_path / "new")


def test_the_initial_weights_follow_the_seed(composed: Compose) -> None:
    first, again, other = (parts.build(composed(f"seed={seed}")).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())
