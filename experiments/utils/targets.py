"""Check the options of a `_target_` against its signature, without calling it."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from .nearest import hint

SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_")  # of Hydra's instantiate
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class OptionError(ValueError):
    """An option, or a file that it names, that cannot work. The message says why, and what to do."""


def targets(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    """The place, the options and the `_target_` of everything that the config describes.

    `train_task` changes the options of `task`, so it has the target of `task`.
    """
    if isinstance(target := config.get("_target_"), str):
        yield place, dict(config), target
    for key, value in config.items():
        name = f"{place}.{key}" if place else str(key)
        if name == "train_task" and isinstance(value, dict):
            if isinstance(config.get("task"), dict) and isinstance(config["task"].get("_target_"), str):
                yield name, value, config["task"]["_target_"]
        elif isinstance(value, dict):
            yield from targets(value, name)
        elif isinstance(value, list):
            for number, entry in enumerate(value):
                if isinstance(entry, dict):
                    yield from targets(entry, f"{name}.{number}")


def check_targets(config: Mapping[str, Any]) -> None:
    """Check that every target can be imported and accepts its options.

    Raises:
        OptionError: there is no such target, it has no such option, or a required option is missing.
        ImportError: a module cannot be imported.
    """
    for place, node, target in targets(config):
        if "${" in target:
            continue
        function = import_target(place, target)
        if (parameters := _parameters(function)) is None:
            continue
        for key in node:
            if not accepts(function, str(key)) and str(key) != "_args_":
                names = [name for name, parameter in parameters.items() if parameter.kind in NAMED]
                raise OptionError(f"{place}.{key}: {target} has no option {key!r}; {hint(str(key), names)}")
        _check_types(place, node, target, function)
        # `train_task`, and a method of `multitask`, only change another config.
        changes = place == "train_task" or place.startswith("methods.")
        if not changes and not node.get("_partial_", False):
            _check_complete(place, node, target, parameters)


def accepts(function: Callable[..., Any], key: str) -> bool:
    """Whether the function has this option; a function with `**options` has all."""
    parameters = _parameters(function)
    if key in SPECIAL or parameters is None:
        return True
    if any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return key != "_args_"
    return key in parameters and parameters[key].kind in NAMED


def import_target(place: str, target: str) -> Callable[..., Any]:
    """The class or function at a dotted path.

    Raises:
        OptionError: the module has no such name, or what it has cannot be called.
        ImportError: there is no such module, or it needs a package that is missing.
    """
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts) or len(parts) < 2:
        raise OptionError(
            f"{place}._target_={target}: expected the dotted path of a class or function, such as"
            " mymodule.MyClass."
        )
    module: Any = None
    for number, part in enumerate(parts):
        if module is not None and hasattr(module, part):
            module = getattr(module, part)
            continue
        name = ".".join(parts[: number + 1])
        if module is not None and not inspect.ismodule(module):
            known = [entry for entry in dir(module) if not entry.startswith("_")]
            raise OptionError(f"{place}._target_={target}: it has no {part!r}; {hint(part, known)}")
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ImportError(_cannot_import(place, target, error), name=error.name) from error
            if module is None:
                raise ImportError(_cannot_import(place, target, error), name=error.name) from error
            known = [entry for entry in dir(module) if not entry.startswith("_")]
            near = hint(part, known)
            near = near if near.startswith("did") else "check the path."
            before = ".".join(parts[:number])
            raise OptionError(f"{place}._target_={target}: {before} has no {part!r}; {near}") from error
        except Exception as error:
            raise ImportError(_cannot_import(place, target, error)) from error
    if not callable(module):
        raise OptionError(f"{place}._target_={target} is a {type(module).__name__}; it cannot be called.")
    return module


def _cannot_import(place: str, target: str, error: Exception) -> str:
    return f"{place}._target_={target} cannot be imported: {type(error).__name__}: {error}"


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters by name; None if the function, written in C, does not say."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


def _check_types(place: str, node: Mapping[str, Any], target: str, function: Callable[..., Any]) -> None:
    try:
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:  # annotations may name what only a type checker imports
        return
    for key, value in node.items():
        if key in hints and not fits(value, hints[key]):
            kind = hints[key].__name__ if inspect.isclass(hints[key]) else hints[key]
            text = str(kind).replace("typing.", "")
            raise OptionError(f"{place}.{key}={value}: {target} expects {text} for {key}.")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value of a config may be passed for an annotated parameter; true if that is not certain."""
    if isinstance(value, dict) or (isinstance(value, str) and "${" in value) or annotation is Any:
        return True  # a part, or an interpolation, which is not known yet
    if isinstance(value, float) and math.isnan(value):
        return False
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if annotation in (None, type(None)):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation in (int, float):
        kinds = (int,) if annotation is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    if annotation is torch.Tensor:
        return False  # YAML has none
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        return isinstance(value, list | str) if origin is not tuple else isinstance(value, list)
    return True


def _check_complete(
    place: str, node: Mapping[str, Any], target: str, parameters: dict[str, inspect.Parameter]
) -> None:
    positional = node.get("_args_")
    count = len(positional) if isinstance(positional, list) else 0
    in_order = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    varied = any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters.values())
    if count > len(in_order) and not varied:
        raise OptionError(
            f"{place}._args_ has {count} entries; {target} takes at most {len(in_order)}: "
            f"{', '.join(in_order) or 'none'}."
        )
    if twice := [name for name in in_order[:count] if name in node]:
        raise OptionError(f"{place}.{twice[0]} is set twice: by name, and by its place in {place}._args_.")
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in in_order[:count]
        and name not in node
    ]
    if missing:
        options = " ".join(f"{place}.{name}=..." for name in missing)
        raise OptionError(f"{place}: {target} requires {', '.join(missing)}; set {options}")
    if unset := [key for key, value in node.items() if value == "???"]:
        raise OptionError(f"{place}.{unset[0]} is not set; set {place}.{unset[0]}=...")
