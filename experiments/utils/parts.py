"""Build the parts of a training from its config, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from metamtl import Recipe, engines, load
from metamtl.loading import resolve
from metamtl.losses import WithTeachers

from . import options
from .measure import higher
from .processes import is_distributed
from .step_cost import StepCost
from .streams import sample


class Parts(NamedTuple):
    """Data, model, recipe and optimizer of one training.

    `strategies` are the adaptation strategies available at test. `engine` computes the training steps,
    `evaluator` the evaluations; if None, the library's default. `cost` measures the training steps.
    """

    source: Any
    train: Any
    validation: Any
    test: Any
    model: nn.Module
    recipe: Recipe
    strategies: dict[str, Recipe]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    engine: engines.Engine | None
    evaluator: engines.Engine | None
    cost: StepCost


class Sources:
    """Cache of sources of tasks, so that the trainings of a table share their data."""

    def __init__(self) -> None:
        self.built: dict[str, Any] = {}

    def __call__(self, cfg: DictConfig, changes: DictConfig | None = None) -> Any:
        """The source described by `cfg.task`, updated with `changes`."""
        task = OmegaConf.merge(cfg.task, changes or {})
        key = OmegaConf.to_yaml(task, resolve=True)
        if key not in self.built:
            self.built[key] = part("task", task)
        return self.built[key]


def build(cfg: DictConfig, sources: Sources | None = None) -> Parts:
    """Check the config of a training and build all its parts; the first task of the training runs once.

    Raises:
        ValueError: an invalid option; the message contains its name.
        ImportError: a part requires a package that is not installed.
        Exception: what the first task raises, for example because the recipe does not fit the tasks.
    """
    options.check(cfg, "train")
    sources = sources or Sources()
    source = sources(cfg)
    if getattr(source, "queries", None) == 0:
        raise options.OptionError(
            "task.queries=0: validation and test are measured on queries; to leave them out in the training"
            " alone, use train_task={queries: 0}."
        )
    validation, test = source.split("validation"), source.split("test")
    for metric in (cfg.metric, *(cfg.reference or {})):
        higher(validation, metric)
    if cfg.metric == "delta_m" and not cfg.reference:
        raise options.OptionError(
            "metric=delta_m compares with single tasks; set reference={task/metric: value}."
        )
    train = (sources(cfg, cfg.train_task) if cfg.train_task else source).split("train")
    if cfg.teachers:
        train = taught(train, cfg)
    # Configs may refer to attributes of the training tasks, the model and the recipe: ${train:ids},
    # ${net:features}, ${recipe:adapter}.
    resolve("train", train)
    torch.manual_seed(cfg.seed)  # for the initial weights only; everything else has its own generator
    model = part("net", cfg.net).to(cfg.device)
    resolve("net", model)
    recipe: Recipe = part("recipe", cfg.recipe)
    resolve("recipe", recipe)
    recipe.adapter.to(cfg.device)
    recipe.aggregator.to(cfg.device)
    strategies = {name: Recipe(part(f"adapt.{name}", cfg.adapt[name])) for name in cfg.adapt}
    if not cfg.transductive:
        check_inductive({"recipe": recipe, **{f"adapt.{name}": way for name, way in strategies.items()}})
    optimizer = part(
        "optimizer", cfg.optimizer, lambda make: make([*model.parameters(), *recipe.parameters()])
    )
    schedule = part("schedule", cfg.schedule, lambda make: make(optimizer))
    cost = StepCost(model, recipe, train.loss)
    try:
        cost(sample(train, cfg.meta_batch, cfg.seed, 0))  # what no step can do ends it before the training
    except Exception as error:
        error.add_note(f"This was the first task of a training with recipe={cfg.recipe}.")
        raise
    if cfg.engine is not None:
        engine = evaluator = part("engine", cfg.engine)
        if isinstance(train.loss, Mapping) and not isinstance(engine, engines.Auto | engines.Loop):
            raise options.OptionError(
                f"engine={engine!r}: named tasks differ in shape and run sequentially; use engine=null, or"
                " engine={_target_: metamtl.engines.Loop}."
            )
    elif isinstance(train.loss, Mapping):  # named tasks: only one engine supports them
        engine = evaluator = None
    else:
        engine, evaluator = (
            engines.Auto(steps=num_steps(cfg, train, cost)),
            engines.Auto(steps=cfg.validate.times),
        )
    if is_distributed():
        engine, evaluator = engines.Sharded(engine), engines.Sharded(evaluator)
    return Parts(
        source,
        train,
        validation,
        test,
        model,
        recipe,
        strategies,
        optimizer,
        schedule,
        engine,
        evaluator,
        cost,
    )


def check_inductive(named: Mapping[str, Recipe]) -> None:
    """Raise a ValueError if an adapter is transductive."""
    for name, recipe in named.items():
        if recipe.adapter.transductive:
            raise ValueError(
                f"{name}={recipe.adapter} is transductive: it reads all query inputs of a task, which"
                " transductive=false forbids; choose another method, or set transductive=true."
            )


def part(name: str, config: Any, call: Callable[[Any], Any] | None = None) -> Any:
    """Build a part from its config; `call` completes a part whose config is partial.

    Raises:
        ImportError: the part, or a package that it requires, cannot be imported.
        ValueError: its options are invalid.
    """
    try:
        result = instantiate(config)
        return call(result) if call else result
    except Exception as error:
        cause = error.__cause__ or error
        error_type = ImportError if isinstance(cause, ImportError) else options.OptionError
        raise error_type(
            f"{name}={config} cannot be built: {type(cause).__name__}: {cause} Correct its config or"
            f" an option: {name}.<option>=<value>."
        ) from error


def num_steps(cfg: DictConfig, train: Any, cost: StepCost) -> int | None:
    """Maximum number of steps within the limits; None if there is a time limit."""
    if cfg.max_minutes is not None:
        return None
    limits = [] if cfg.steps is None else [cfg.steps]
    if cfg.gradient_evaluations:
        limits.append(-(-cfg.gradient_evaluations // cost(sample(train, cfg.meta_batch, cfg.seed, 0))))
    return min(limits, default=None)


def taught(tasks: Any, cfg: DictConfig) -> WithTeachers:
    """Add the outputs of models of other runs to the targets of the tasks, for distillation."""
    models = {task: load(run).model.to(cfg.device).eval() for task, run in cfg.teachers.items()}
    return WithTeachers(tasks, models, **instantiate(cfg.distillation, _convert_="all"))
