"""Kinds of options: what a value may be, and the words for it."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import torch


class Kind(NamedTuple):
    """What an option may be: `words` say it, `accepts` decides it."""

    words: str
    accepts: Callable[[Any], bool]


def number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def integer(value: Any) -> bool:
    """Whether it is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _part(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("_target_"), str)


def _mapping_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return isinstance(value, dict) and all(map(accepts, value.values()))

    return check


def _device(value: Any) -> bool:
    if value == "auto":
        return True
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        return False
    if device.type == "cpu":
        return device.index in (None, 0)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count()
    return accelerator is not None and device.type == accelerator.type and (device.index or 0) < count


def devices() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return f"auto or cpu (torch {torch.__version__} finds no accelerator)"
    names = [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    return f"auto, cpu, {accelerator.type}, {', '.join(names)}"


def or_null(kind: Kind, meaning: str = "") -> Kind:
    """The kind, or null."""
    words = f"{kind.words}, or null{f' for {meaning}' if meaning else ''}"
    return Kind(words, lambda value: value is None or kind.accepts(value))


COUNT = Kind("a positive integer", lambda value: integer(value) and value > 0)
AMOUNT = Kind("a positive number", lambda value: number(value) and value > 0)
NUMBER = Kind("a number", number)
STEPS = Kind("a non-negative integer", lambda value: integer(value) and value >= 0)
SEED = STEPS
RATE = Kind(
    "a number, such as 0.01, or a list of numbers",
    lambda value: all(map(number, value)) if isinstance(value, list) else number(value),
)
DECAY = Kind("a decay of at least 0 and less than 1", lambda value: number(value) and 0 <= value < 1)
SHARE = Kind("a number from 0 to 1", lambda value: number(value) and 0 <= value <= 1)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a name", lambda value: isinstance(value, str) and bool(value))
FOLDER = Kind("a folder", lambda value: isinstance(value, str) and bool(value))
DEVICE = Kind("a device", _device)
PART = Kind("a mapping with _target_, such as {_target_: module.Class}", _part)
PARTS = Kind("a mapping from names to mappings with _target_", _mapping_of(_part))
OPTIONS = Kind("a mapping, such as {ways: 20}", _mapping_of(lambda _: True))
CHANGES = Kind(
    "a mapping from names to changes of the config, such as {mine: {optimizer: {lr: 0.1}}}",
    _mapping_of(lambda value: isinstance(value, dict)),
)
BASELINES = Kind(
    "a mapping from rows to entries, such as {ridge: {estimator: {_target_: sklearn.linear_model.Ridge}}}",
    _mapping_of(lambda value: isinstance(value, dict) and _part(value.get("estimator"))),
)
NUMBERS = Kind("a mapping from names to numbers", _mapping_of(number))
FOLDERS = Kind("a mapping from tasks to folders of trainings", _mapping_of(TEXT.accepts))
TUNE = Kind(
    "a mapping from options to lists or intervals, such as {optimizer.lr:[1e-3,1e-2]}",
    lambda value: isinstance(value, dict),
)


def list_of(kind: Kind, words: str, example: str, *, empty: bool = False) -> Kind:
    """A list without duplicates."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, list):
            return False
        distinct = all(value.count(entry) == 1 for entry in value)
        return (empty or bool(value)) and distinct and all(map(kind.accepts, value))

    amount = "" if empty else ", with at least one entry"
    return Kind(f"a list of different {words}{amount}, such as {example}", accepts)


SEEDS = list_of(SEED, "seeds (non-negative integers)", "[0,1,2]")
NAMES = list_of(TEXT, "names", "[maml,anil]")
