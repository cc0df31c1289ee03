"""Layers of a Jacobian, and means of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..functional import Params, select_parameters, trainable
from .rows import Rows


def check_layers(model: nn.Module, layers: Iterable[str] | None) -> dict[str, tuple[str, ...]] | None:
    """For each prefix the names of its parameters.

    Raises:
        ValueError: a prefix names no trainable parameter, or two prefixes name the same one.
    """
    if layers is None:
        return None
    prefixes = [layers] if isinstance(layers, str) else list(layers)
    result = {prefix: tuple(select_parameters(model, prefix, "layers")) for prefix in prefixes}
    names = [name for part in result.values() for name in part]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"layers={prefixes} name {', '.join(double[:5])} twice; pass disjoint prefixes.")
    return result


def layers_of(
    model: nn.Module, rows: Params, prefixes: Mapping[str, tuple[str, ...]] | None
) -> dict[str, tuple[str, ...]]:
    """For each layer the names of its rows; by default a layer is a module that has parameters itself."""
    if prefixes is not None:
        return {prefix: tuple(n for n in names if n in rows) for prefix, names in prefixes.items()}
    params, layers = trainable(model), dict[str, list[str]]()
    for name in rows:
        owner = name.rpartition(".")[0] if name in params else name  # else it is the name of the features
        layers.setdefault(owner or name, []).append(name)
    return {layer: tuple(names) for layer, names in layers.items()}


def mean_of_groups(
    rows: Rows, names: tuple[str, ...], groups: Mapping[str, Iterable[str]]
) -> tuple[tuple[str, ...], Rows]:
    """The mean row of each group."""
    members = {group: tuple(tasks) for group, tasks in groups.items()}
    for group, tasks in members.items():
        unknown = [task for task in tasks if task not in names]
        if unknown or not tasks:
            raise ValueError(
                f"groups[{group!r}] = {list(tasks)}: {f'no task {unknown[0]!r}' if unknown else 'no task'};"
                f" the tasks are {', '.join(map(repr, names[:10]))}."
            )
    weights = rows.losses.new_zeros(len(members), len(names))
    for i, tasks in enumerate(members.values()):
        for task in tasks:
            weights[i, names.index(task)] += 1 / len(tasks)
    means = {n: torch.tensordot(weights.to(r), r, 1) for n, r in rows.rows.items()}
    return tuple(members), Rows(tuple(members), weights @ rows.losses, means)
