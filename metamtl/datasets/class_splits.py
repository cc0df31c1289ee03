"""Splits of named classes into training, validation and test classes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from .files import SPLITS, split_file

Splits = Mapping[str, Iterable[str]] | str | os.PathLike[str] | Sequence[float]


def class_splits(splits: Splits, names: Sequence[str], seed: int, where: str) -> dict[str, list[str]]:
    """The classes of each split, from one of four descriptions.

    Args:
        splits: a mapping of `"train"`, `"validation"` and `"test"` to class names; the path of a JSON file
            with such a mapping (`*.json`); the name of a file in `data/splits/` (`"mini_imagenet"`); or
            three fractions, which divide the classes at random.
        names: the existing classes.
        seed: seed of the division by fractions.
        where: what has these classes, for error messages.

    Raises:
        ValueError: a split is missing or empty, a class is in two splits or does not exist, or fractions
            that cannot divide the classes.
        FileNotFoundError: there is no such file.
    """
    if isinstance(splits, (str, os.PathLike)):
        path = Path(splits)
        content = _read(path) if path.suffix == ".json" else split_file(str(splits))
        return _checked(content, names, f"the split {os.fspath(splits)!r}", where)
    if isinstance(splits, Mapping):
        return _checked(splits, names, "splits", where)
    return _divided([float(part) for part in splits], names, seed, where)


def _read(path: Path) -> Mapping[str, Iterable[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} has a {type(content).__name__}, not a mapping of splits to class names.")
    return content


def _checked(
    content: Mapping[str, Iterable[str]], names: Sequence[str], what: str, where: str
) -> dict[str, list[str]]:
    if set(content) != set(SPLITS):
        raise ValueError(f"{what} has {', '.join(map(str, content))}; it must have {', '.join(SPLITS)}.")
    split_of: dict[str, str] = {}
    result: dict[str, list[str]] = {}
    for split in SPLITS:
        classes = content[split]
        if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"{what}: {split!r} must be a list of class names, found {classes!r}.")
        result[split] = list(dict.fromkeys(classes))
        if not result[split]:
            raise ValueError(f"{what}: {split!r} has no classes.")
        for name in result[split]:
            if split_of.setdefault(name, split) != split:
                raise ValueError(f"{what}: class {name!r} is in {split_of[name]!r} and in {split!r}.")
    existing = set(names)
    if unknown := [name for name in split_of if name not in existing]:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"{what} has the classes {', '.join(unknown[:5])}{more}, which {where} does not have; it has"
            f" {len(names)} classes: {', '.join(names[:5])}, ..."
        )
    return result


def _divided(fractions: list[float], names: Sequence[str], seed: int, where: str) -> dict[str, list[str]]:
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"splits={tuple(fractions)}: pass the fractions of training, validation and test classes, such"
            " as (0.6, 0.2, 0.2), with the sum 1."
        )
    bounds = [round(sum(fractions[:i]) * len(names)) for i in range(4)]
    if len(set(bounds)) < 4:
        raise ValueError(
            f"splits={tuple(fractions)}: {where} has {len(names)} classes, so that a split has none; add"
            " classes, or pass larger fractions."
        )
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return {
        split: sorted(names[i] for i in order[start:end])
        for split, start, end in zip(SPLITS, bounds[:3], bounds[1:])
    }
