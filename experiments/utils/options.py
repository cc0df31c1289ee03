"""Checks of the options, before anything is built."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

LIMITS = ("steps", "gradient_evaluations", "max_minutes")  # of a training; null: no limit
COUNTS = (
    *("checkpoint.keep", "meta_batch", "tasks_per_step"),
    "validate.times",
    "validate.tasks",
    "select.tasks",
    "test.tasks",
)
NUMBERS = ("inner.lr", "optimizer.lr")


def check_training(cfg: DictConfig) -> None:
    """Check the options of one training.

    Raises:
        ValueError: an invalid limit, count, learning rate or seed, or no limit at all.
    """
    for name in LIMITS:
        value = OmegaConf.select(cfg, name)
        integer = name != "max_minutes"
        if value is not None and not (_is_number(value, integer=integer) and value > 0):
            kind = "integer" if integer else "number"
            raise ValueError(f"{name}={value}: expected a positive {kind}, or null for no limit.")
    if all(OmegaConf.select(cfg, name) is None for name in LIMITS):
        raise ValueError(
            f"{', '.join(f'{name}=null' for name in LIMITS)}: training would never end; set one of them."
        )
    check_counts(cfg, COUNTS)
    if cfg.checkpoint.every is not None:
        check_counts(cfg, ["checkpoint.every"])
    if not isinstance(cfg.resume, bool):
        raise ValueError(f"resume={cfg.resume}: expected true or false.")
    for name in NUMBERS:
        value = OmegaConf.select(cfg, name)
        per_step = list(value) if isinstance(value, ListConfig) else [value]
        if not all(lr is None or _is_number(lr) for lr in per_step):
            raise ValueError(f"{name}={value}: expected a number, e.g. {name}=0.01.")
    if not (_is_number(cfg.average) and 0 <= cfg.average < 1):
        raise ValueError(f"average={cfg.average}: expected a decay of at least 0 and less than 1.")
    _check_seed("seed", cfg.seed)


def check_counts(cfg: DictConfig, names: Iterable[str]) -> None:
    """Raise a ValueError unless each of these options is a positive integer."""
    for name in names:
        value = OmegaConf.select(cfg, name)
        if not (_is_number(value, integer=True) and value > 0):
            raise ValueError(f"{name}={value}: expected a positive integer.")


def check_seeds(cfg: DictConfig, name: str = "seeds") -> None:
    """Raise a ValueError unless the option is a list of different seeds."""
    value = cfg[name]
    if not isinstance(value, ListConfig):
        raise ValueError(
            f"{name}={value}: expected a list of seeds, e.g. {name}=[3] for a single seed, or"
            f" {name}=[0,1,2] for three seeds."
        )
    _check_list(name, list(value))
    for seed in value:
        _check_seed(name, seed)


def names(cfg: DictConfig, name: str) -> list[Any]:
    """List of names in an option; a single name is a list of one.

    Raises:
        ValueError: the list is empty or has duplicates.
    """
    value = cfg[name]
    entries = list(value) if isinstance(value, ListConfig) else [value]
    _check_list(name, entries)
    return entries


def check_tune(cfg: DictConfig) -> None:
    """Check `tune`, `{option: values}`.

    Raises:
        ValueError: it is not a mapping, an option has no list of values, or an option is unknown.
    """
    if cfg.tune is None:
        return
    if not isinstance(cfg.tune, DictConfig):
        raise ValueError(
            f"tune={cfg.tune}: expected a mapping from options to lists, e.g. tune={{optimizer.lr:[1e-3]}}."
        )
    for name, values in cfg.tune.items():
        if not isinstance(values, ListConfig) or not values:
            raise ValueError(
                f"tune: {name}={values}: expected a list of values to try, e.g. tune={{{name}:[{values}]}}."
            )
    check_known(cfg, "tune", cfg.tune)


def check_known(cfg: DictConfig, where: str, changes: Iterable[Any]) -> None:
    """Raise a ValueError if one of the changed options is not an option of a training."""
    unknown = sorted({str(name).partition(".")[0] for name in changes} - set(map(str, cfg)))
    if unknown:
        raise ValueError(
            f"{where} changes {unknown}, which are not options of a training; it has"
            f" {', '.join(map(str, cfg))}."
        )


def _check_list(name: str, entries: list[Any]) -> None:
    if not entries:
        raise ValueError(f"{name}=[]: expected at least one entry.")
    duplicates = sorted({str(entry) for entry in entries if entries.count(entry) > 1})
    if duplicates:
        raise ValueError(
            f"{name} has {', '.join(duplicates)} twice; remove the duplicates, because each is run once."
        )


def _check_seed(name: str, seed: Any) -> None:
    if not (_is_number(seed, integer=True) and seed >= 0):
        raise ValueError(f"{name}: {seed!r} is not a valid seed; expected a non-negative integer.")


def _is_number(value: Any, *, integer: bool = False) -> bool:
    kinds = int if integer else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and isfinite(value)
