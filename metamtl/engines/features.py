"""Rows over the features that named tasks share, instead of over the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import Params, forward
from .base import Rows, added
from .task import TaskFunction


def feature_rows(functions: Mapping[str, TaskFunction], shared: Params, at: str) -> Rows:
    """One row for each named task, the gradient to the output of the module `at`, `[T, *features]`.

    One pass forward; each task's backward pass ends at the features, and one pass from them, in `pull`,
    takes the aggregated direction to the parameters. For aggregators that are linear in the rows (Mean,
    Sum, fixed weights) the result is that of rows over the parameters.

    Raises:
        ValueError: `at` is no module of the model, or not what all the tasks share last; the tasks do not
            share one input.
    """
    model, x = _common(functions, at)
    shared = {name: param.detach().requires_grad_() for name, param in shared.items()}
    with torch.enable_grad():
        with _cut(model, at) as seen:
            constants = next(iter(functions.values())).constants
            outputs = dict(forward(model, {**constants, **shared}, x, tuple(functions)))
        output, features = _one(seen, at)
        losses, rows, private = [], [], {}
        for task, function in functions.items():
            function.given = outputs[task]
            objective, loss = function(shared, {}, function.data)
            function.given = None
            row, *rest = _gradients(objective, [features, *shared.values()])
            if row is None:
                raise ValueError(f"the objective of task {task!r} does not depend on the output of {at!r}.")
            losses.append(loss.detach())
            rows.append(row)
            private[task] = rest
    _check_behind(private, list(shared), at)
    columns = zip(shared, zip(*private.values()))
    alone = {name: [found for found in column if found is not None] for name, column in columns}

    def pull(directions: Params) -> Params:
        """From a direction over the features to the gradient of the parameters they come from."""
        cotangent = directions[at].view_as(output).to(output)
        found = torch.autograd.grad(output, list(shared.values()), cotangent, allow_unused=True)
        return {name: gradient for name, gradient in zip(shared, found) if gradient is not None}

    return Rows(
        losses=torch.stack(losses),
        shared={at: torch.stack(rows)},
        own={},
        private={name: added(column) for name, column in alone.items() if column},
        pull=pull,
    )


def _common(functions: Mapping[str, TaskFunction], at: str) -> tuple[nn.Module, Any]:
    """The model and the one input of all the tasks."""
    first = next(iter(functions.values()))
    if not at or not _has(first.model, at):
        tops = ", ".join(repr(name) for name, _ in first.model.named_children())
        raise ValueError(f"at={at!r} names no module of {type(first.model).__name__}; it has {tops}.")
    x = first.episode.query[0]
    for task, function in functions.items():
        if not function.unadapted:
            raise ValueError(
                f"at={at!r}: task {task!r} has a support set and adapts parameters of its own, so it shares"
                " no features; aggregate over parameters (at=None)."
            )
        if function.episode.query[0] is not x:
            raise ValueError(
                f"at={at!r}: task {task!r} has an input of its own, and features of different examples"
                " cannot be aggregated; give all tasks one and the same query.x, or use at=None."
            )
    return first.model, x


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


@contextmanager
def _cut(model: nn.Module, at: str) -> Iterator[list[tuple[Any, Tensor]]]:
    """Within it, backward passes end at the output of the module `at`; yields (output, features) pairs."""
    seen: list[tuple[Any, Tensor]] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"at={at!r} returns a {type(output).__name__}; name a module that returns one tensor."
            )
        seen.append((output, output.detach().requires_grad_()))
        return seen[-1][1]

    handle = model.get_submodule(at).register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _one(seen: list[tuple[Tensor, Tensor]], at: str) -> tuple[Tensor, Tensor]:
    if len(seen) != 1:
        raise ValueError(
            f"at={at!r} ran {len(seen)} times in one pass of the model; name the last module that all the"
            " tasks share, which runs once."
        )
    if not seen[0][0].requires_grad:
        raise ValueError(
            f"the output of at={at!r} depends on no trainable parameter; nothing to aggregate."
        )
    return seen[0]


def _gradients(objective: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not objective.requires_grad:
        return (None,) * len(inputs)
    # Outputs may share operations behind the features, so their graph stays.
    return torch.autograd.grad(objective, inputs, allow_unused=True, retain_graph=True)


def _check_behind(private: dict[str, list[Tensor | None]], names: list[str], at: str) -> None:
    """Refuse parameters that all the tasks use behind the features: they would not be aggregated."""
    used = [all(found is not None for found in column) for column in zip(*private.values())]
    behind = [name for name, everyone in zip(names, used) if everyone]
    if behind and len(private) > 1:
        raise ValueError(
            f"all tasks use {', '.join(behind[:5])} otherwise than through at={at!r}, so their gradients"
            " would not be aggregated; name the last module that all the tasks share, or use at=None."
        )
