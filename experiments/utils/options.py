"""Checks of the options, before anything is built: one table of options for each command.

A table has the dotted name of every option and the kind of its value. A test compares the tables with the
files in `conf/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .kinds import (
    AMOUNT,
    BASELINES,
    CHANGES,
    COUNT,
    DECAY,
    DEVICE,
    FLAG,
    FOLDER,
    FOLDERS,
    NAMES,
    NUMBER,
    NUMBERS,
    OPTIONS,
    PART,
    PARTS,
    RATE,
    SEED,
    SEEDS,
    SHARE,
    STEPS,
    TEXT,
    TUNE,
    Kind,
    devices,
    integer,
    list_of,
    or_null,
)
from .nearest import hint
from .targets import OptionError, check_targets

# Some limits may be null, but not all of them.
LIMITS = {
    "steps": or_null(COUNT, "no limit"),
    "gradient_evaluations": or_null(COUNT, "no limit"),
    "max_minutes": or_null(AMOUNT, "no limit"),
}
TRAINING: dict[str, Kind] = {
    "task": PART,
    "tower": PART,
    "net": PART,
    "recipe": PART,
    "optimizer": PART,
    "schedule": PART,
    "adapt": PARTS,
    "trivial.name": TEXT,
    "trivial.net": PART,
    "trivial.recipe": PART,
    "seed": SEED,
    **LIMITS,
    "patience": or_null(COUNT, "no early stopping"),
    "on_nonfinite": Kind("raise or skip", lambda value: value in ("raise", "skip")),
    "meta_batch": COUNT,
    "tasks_per_step": COUNT,
    "engine": or_null(PART, "Auto"),
    "average": DECAY,
    "inner.steps": STEPS,
    "inner.lr": RATE,
    "validate.times": COUNT,
    "validate.tasks": COUNT,
    "select.tasks": COUNT,
    "test.tasks": COUNT,
    "workers": STEPS,
    "train_task": OPTIONS,
    "transductive": FLAG,
    "metric": TEXT,
    "reference": or_null(NUMBERS),
    "teachers": or_null(FOLDERS),
    "distillation.divergence": PART,
    "distillation.weight": SHARE,
    "distillation.mask": PART,
    "analyse.every": or_null(COUNT),
    "checkpoint.every": or_null(COUNT),
    "checkpoint.keep": COUNT,
    "resume": FLAG,
    "device": DEVICE,
    "data_dir": or_null(FOLDER),
}
COMPARISON = {**TRAINING, "recipes": NAMES, "seeds": SEEDS}
SEARCH = {
    "tune": or_null(TUNE),
    "search.method": Kind("grid, random or optuna", lambda value: value in ("grid", "random", "optuna")),
    "search.trials": or_null(COUNT),
    "search.seed": SEED,
}
MULTITASK = {
    **TRAINING,
    **SEARCH,
    "teachers": or_null(
        Kind("single_tasks, or folders", lambda value: value == "single_tasks" or FOLDERS.accepts(value))
    ),
    "seeds": SEEDS,
    "tune_seeds": SEEDS,
    "run": NAMES,
    "methods": CHANGES,
    "baselines": or_null(BASELINES),
}
GRID = {
    **TRAINING,
    **SEARCH,
    "adapts": list_of(or_null(TEXT), "prefixes of parameter names, or null", "[head,null]"),
    "inner_steps": list_of(STEPS, "numbers of inner steps", "[1,3]"),
    "aggregators": PARTS,
    "against": TEXT,
    "seeds": SEEDS,
    "measures": list_of(TEXT, "metrics", "[accuracy]"),
    "gain.worst_tenth": NUMBER,
    "gain.mean": NUMBER,
}
RATE_SEARCH = {**TRAINING, **SEARCH, "seeds": SEEDS, "tune_seeds": SEEDS}
CURVES = {
    **RATE_SEARCH,
    "run": NAMES,
    "methods": CHANGES,
    "shots": list_of(COUNT, "numbers of support examples", "[5,10]"),
    "tune_shots": COUNT,
    "adaptation_steps": COUNT,
}
NEW_TASK = {
    "multitask": FOLDER,
    "rows": NAMES,
    "seeds": SEEDS,
    "ways": COUNT,
    "shots": COUNT,
    "task": PART,
    "adapt": PARTS,
    "select.tasks": COUNT,
    "test.tasks": COUNT,
    "data_dir": or_null(FOLDER),
}
GROUP = {
    **TRAINING,
    **SEARCH,
    "seeds": SEEDS,
    "tune_seeds": SEEDS,
    "models": Kind("an integer of at least 2", lambda value: integer(value) and value > 1),
    "measure": Kind(
        "look_ahead, linearized, transfer, gramian or cosine",
        lambda value: value in ("look_ahead", "linearized", "transfer", "gramian", "cosine"),
    ),
    "affinity.steps": or_null(COUNT, "those of a training"),
    "affinity.every": COUNT,
    "affinity.lr": or_null(AMOUNT, "that of the optimizer"),
    "control": STEPS,
}
ANALYSIS = {
    "run": FOLDER,
    "batches": Kind("an integer of at least 3", lambda value: integer(value) and value > 2),
    "tasks": or_null(Kind("an integer of at least 2", lambda value: integer(value) and value > 1)),
    "lr": or_null(AMOUNT),
    "seed": SEED,
}
TOY = {
    "aggregators": list_of(TEXT, "aggregators", "[Mean,MGDA]", empty=True),
    "steps": COUNT,
    "lr": AMOUNT,
    "tolerance": AMOUNT,
}
COST = {"tasks": COUNT, "batch": COUNT, "rounds": COUNT}
ANALYSIS_COST = {
    "tasks": Kind("an integer of at least 2", lambda value: integer(value) and value > 1),
    "rounds": COUNT,
    **{f"log.{name}": COUNT for name in ("steps", "every")},
}
WORK = list_of(TEXT, "workloads", "[sinusoid_1]", empty=True)
BENCH = {
    "work": WORK,
    "engines": list_of(TEXT, "engines", "[Loop,Vmap]"),
    "device": DEVICE,
    "rounds": COUNT,
    "first_call": WORK,
    "auto.work": WORK,
    "auto.steps": COUNT,
    "memory_steps": list_of(COUNT, "numbers of steps", "[1,10]", empty=True),
}
ENDURANCE = {"steps": COUNT, "engines": list_of(TEXT, "engines", "[Vmap]")}
SCALING = {"processes": COUNT, "rounds": COUNT, "steps": COUNT}
LOADING = {"workers": STEPS, "rounds": COUNT, "steps": COUNT}
TABLES = {
    "train": TRAINING,
    "compare": COMPARISON,
    "multitask": MULTITASK,
    "grid": GRID,
    "search": RATE_SEARCH,
    "curves": CURVES,
    "new_task": NEW_TASK,
    "analyse": ANALYSIS,
    "group": GROUP,
    "toy": TOY,
    "cost": COST,
    "analysis_cost": ANALYSIS_COST,
    "bench": BENCH,
    "endurance": ENDURANCE,
    "scaling": SCALING,
    "loading": LOADING,
}


def check(cfg: DictConfig, command: str) -> None:
    """Check all options of a command.

    Raises:
        OptionError: an unknown option, or a value of the wrong type or out of range; the message says what
            is allowed.
        ImportError: a `_target_` cannot be imported.
    """
    table = TABLES[command]
    config: Any = OmegaConf.to_container(cfg, resolve=False)
    _check_known(config, table)
    for name, kind in table.items():
        if not _has(config, name):
            raise OptionError(f"{name} is missing; remove the `~` override that deletes it.")
        check_value(cfg, name, kind)
    if LIMITS.keys() <= table.keys() and all(cfg[name] is None for name in LIMITS):
        names = ", ".join(f"{name}=null" for name in LIMITS)
        raise OptionError(f"{names}: training would never end; set one of them.")
    if config.get("patience") is not None and cfg.patience >= cfg.validate.times:
        raise OptionError(
            f"patience={cfg.patience} cannot end a training with validate.times={cfg.validate.times}"
            " validations; raise validate.times, or lower patience."
        )
    check_targets(config)


def check_value(cfg: DictConfig, name: str, kind: Kind) -> None:
    """Raise an OptionError if the value of this option is not of this kind."""
    try:
        value = OmegaConf.select(cfg, name, throw_on_missing=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"{name} has no value ({reason}); expected {kind.words}.") from error
    if OmegaConf.is_config(value):  # parts refer to ${train:ids}, which does not exist yet
        value = OmegaConf.to_container(value, resolve=isinstance(value, ListConfig))
    if not kind.accepts(value):
        words = devices() if kind is DEVICE else kind.words
        raise OptionError(f"{name}={value}: expected {words}.{_advice(name, value, kind)}")


def _advice(name: str, value: Any, kind: Kind) -> str:
    """What to write instead, where that is likely."""
    if not kind.words.startswith("a list"):
        return ""
    if not isinstance(value, list):
        return "" if value is None else f" For a single one: {name}=[{value}]."
    twice = sorted({str(entry) for entry in value if value.count(entry) > 1})
    return f" {', '.join(twice)} is in the list twice." if twice else ""


def _check_known(config: Mapping[str, Any], table: Mapping[str, Kind], section: str = "") -> None:
    known = {name.removeprefix(section).partition(".")[0] for name in table if name.startswith(section)}
    for key, value in config.items():
        name = f"{section}{key}"
        if key not in known:
            others = [command for command, table in TABLES.items() if name in table]
            advice = f"{', '.join(others)} has it." if others else hint(key, sorted(known))
            raise OptionError(f"{name} is not an option; {advice}")
        if name not in table:  # a section
            if not isinstance(value, dict):
                inner = ", ".join(entry for entry in table if entry.startswith(f"{name}."))
                raise OptionError(f"{name}={value}: expected a mapping; its options are {inner}.")
            _check_known(value, table, f"{name}.")


def _has(config: Mapping[str, Any], name: str) -> bool:
    first, _, rest = name.partition(".")
    if first not in config:
        return False
    return not rest or (isinstance(config[first], dict) and _has(config[first], rest))


def check_names(name: str, chosen: Iterable[str], known: Iterable[str]) -> None:
    """Raise an OptionError if one of the names in an option is not known."""
    known = list(map(str, known))
    for entry in chosen:
        if entry not in known:
            raise OptionError(f"{name} has {entry!r}, which is not one of them; {hint(entry, known)}")
