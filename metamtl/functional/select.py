"""Selection of the parameters of a model by name."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

Params = dict[str, Tensor]

ADAPTER_VALUE = "adapter:"
"""Prefix of values that an adapter computes for its own `predict`; no parameter has such a name."""


def trainable(model: nn.Module) -> Params:
    """The parameters that require gradients, by name; a tied parameter occurs once."""
    return trainable_and_frozen(model)[0]


def trainable_and_frozen(model: nn.Module) -> tuple[Params, Params]:
    """The parameters that require gradients, and those that do not."""
    named = list(model.named_parameters())
    trained: Params = {name: param for name, param in named if param.requires_grad}
    return trained, {name: param.detach() for name, param in named if not param.requires_grad}


def canonical_names(model: nn.Module) -> dict[str, str]:
    """A dict from every name of a parameter or buffer to its first name.

    A module registered under two names, or a tied parameter, has several names. `named_parameters()` and
    all dicts of parameters in this package use the first one.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> model[1].weight = model[0].weight
    >>> canonical_names(model)
    {'0.weight': '0.weight', '1.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for listing in (model.named_parameters, model.named_buffers):
        for name, tensor in listing(remove_duplicate=False):
            names[name] = first.setdefault(id(tensor), name)
    return names


def of_module(model: nn.Module, params: Params, path: str) -> Params:
    """The entries of `params` that belong to the module `path`, by their names within this module."""
    names = canonical_names(model)
    return {
        name.removeprefix(f"{path}."): params[names[name]]
        for name in with_prefix(names, path)
        if names[name] in params
    }


def with_prefix(names: Iterable[str], prefix: str) -> list[str]:
    """The names that equal `prefix` or begin with `prefix` and a dot: `head` selects `head.weight`."""
    return [name for name in names if not prefix or name == prefix or name.startswith(prefix + ".")]


def longest_prefix(name: str, prefixes: Iterable[str]) -> str | None:
    """The longest of the prefixes that match a name; None if none does. The prefix `""` matches all."""
    matches = [prefix for prefix in prefixes if with_prefix([name], prefix)]
    return max(matches, key=len, default=None)


def select_parameters(
    model: nn.Module, prefixes: str | Iterable[str] | None, argument: str = "adapts"
) -> list[str]:
    """Names of the trainable parameters that match one or several prefixes; if None, of all.

    A prefix may use any name of a module. The result consists of the first names of the parameters.

    Raises:
        ValueError: a prefix matches no parameter, or only frozen parameters.
    """
    candidates = list(trainable(model))
    if prefixes is None:
        return candidates
    canonical = canonical_names(model)
    selected: set[str] = set()
    for prefix in [prefixes] if isinstance(prefixes, str) else list(prefixes):
        matches = {canonical[name] for name in with_prefix(canonical, prefix)} & set(candidates)
        if not matches:
            raise ValueError(_no_parameter(model, prefix, argument))
        selected |= matches
    return [name for name in candidates if name in selected]


def _no_parameter(model: nn.Module, prefix: str, argument: str) -> str:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    kind = type(model).__name__
    if with_prefix(names, prefix):
        return (
            f"{argument}={prefix!r} names only frozen parameters of {kind};"
            " call requires_grad_(True) on them, or name others."
        )
    tops = sorted({name.split(".")[0] for name in names})
    return f"{argument}={prefix!r} names no parameter of {kind}; it has {', '.join(map(repr, tops))}."
