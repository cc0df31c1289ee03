"""Rows of unlike tasks: named, each with its own head, loss and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..functional import Params, forward
from .base import Rows, added
from .task import TaskFunction


def named_rows(functions: Mapping[str, TaskFunction], shared: Params, own: Params) -> Rows:
    """One row for each named task, over the parameters that all of them use.

    Tasks without a support set whose `query.x` is the same object share one pass through the model.

    Raises:
        ValueError: the tasks share no parameter; the objective of one depends on none.
    """
    shared = {name: param.detach().requires_grad_() for name, param in shared.items()}
    own = {name: param.detach().requires_grad_() for name, param in own.items()}
    inputs = [*shared.values(), *own.values()]
    losses: Params = {}
    gradients: dict[str, Any] = {}
    with torch.enable_grad():
        for group in _same_input(functions):
            outputs = _outputs([functions[task] for task in group], group, shared)
            for task in group:
                function = functions[task]
                function.given = outputs.get(task)
                objective, loss = function(shared, own, function.data)
                function.given = None
                # The pass through the model is shared by the group, so its graph stays till the last.
                kept = len(outputs) > 0 and task != group[-1]
                gradients[task] = (
                    torch.autograd.grad(objective, inputs, allow_unused=True, retain_graph=kept)
                    if objective.requires_grad
                    else (None,) * len(inputs)
                )
                losses[task] = loss.detach()
    gradients = {task: gradients[task] for task in functions}
    used = [[row is not None for row in found] for found in gradients.values()]
    common = [all(column) for column in zip(*used)]
    names = [*shared, *own]
    idle = [task for task, found in zip(functions, used) if not any(found)]
    if idle:
        raise ValueError(
            f"the objectives of tasks {idle} depend on no trainable parameter; leave these tasks out of the"
            " step, or look for a detach() on the way to their losses."
        )
    if not any(common[: len(shared)]):
        raise ValueError(
            f"the tasks {', '.join(map(repr, functions))} share no parameter, so there is nothing to"
            " aggregate; give them a common body, or train them apart."
        )
    rows: dict[str, Tensor] = {}
    alone: dict[int, Tensor] = {}
    for position, name in enumerate(names):
        column = [found[position] for found in gradients.values() if found[position] is not None]
        if common[position] and position < len(shared):
            rows[name] = torch.stack(column)
        elif column:
            alone[position] = added(column)
    return Rows(
        losses=torch.stack([losses[task] for task in functions]),
        shared=rows,
        own={names[i]: gradient for i, gradient in alone.items() if i >= len(shared)},
        private={names[i]: gradient for i, gradient in alone.items() if i < len(shared)},
    )


def _same_input(functions: Mapping[str, TaskFunction]) -> list[list[str]]:
    """The tasks, those together whose input is one object and that adapt to nothing."""
    groups: dict[Any, list[str]] = {}
    for task, function in functions.items():
        key = id(function.episode.query[0]) if function.unadapted else task
        groups.setdefault(key, []).append(task)
    return list(groups.values())


def _outputs(functions: list[TaskFunction], group: list[str], shared: Params) -> dict[str, Any]:
    """What the model answers for a group of several tasks, from one pass; nothing for a single task."""
    if len(group) == 1:
        return {}
    first = functions[0]
    x = first.episode.query[0]
    return dict(forward(first.model, {**first.constants, **shared}, x, tuple(group)))
