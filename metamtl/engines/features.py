"""Backward passes that end at the output of a module, whose features all tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..episode import Episode
from .problem import TaskProblem


def check_features(
    problems: Mapping[str, TaskProblem],
    groups: list[list[str]],
    episodes: Mapping[str, Episode],
    features: str,
) -> None:
    """Raise an error if `features` names no module, or if the tasks do not share one input."""
    model = next(iter(problems.values())).model
    if not features or features not in dict(model.named_modules(remove_duplicate=False)):
        tops = ", ".join(repr(name) for name, _ in model.named_children())
        raise ValueError(f"layer={features!r} names no module of {type(model).__name__}; it has {tops}.")
    adapted_tasks = [task for task, problem in problems.items() if problem.adapts]
    if adapted_tasks:
        raise ValueError(
            f"layer={features!r}: task {adapted_tasks[0]!r} has a support set and adapts its own"
            " parameters, so it shares no features; aggregate over parameters (layer=None)."
        )
    if len(groups) > 1:
        raise ValueError(
            f"layer={features!r}: task {groups[1][0]!r} has a different input, and features of different"
            " examples cannot be aggregated; pass the same query.x object to all tasks, or use layer=None."
        )


@contextmanager
def cut_at(model: nn.Module, features: str | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Context manager in which backward passes end at the output of the module `features`.

    Yields a list with one pair for each call of the module: its output, and the leaf that replaces it.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    if features is None:
        yield pairs
        return

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layer={features!r} returns a {type(output).__name__}; use a module that returns one"
                " tensor."
            )
        pairs.append((output, output.detach().requires_grad_()))
        return pairs[-1][1]

    handle = model.get_submodule(features).register_forward_hook(hook)
    try:
        yield pairs
    finally:
        handle.remove()


def only_pair(pairs: list[tuple[Tensor, Tensor]], features: str) -> tuple[Tensor, Tensor]:
    """The pair of a module that was called once and whose output requires a gradient."""
    if len(pairs) != 1:
        raise ValueError(
            f"layer={features!r} ran {len(pairs)} times in one pass of the model; use the last module that"
            " all tasks share, which must run once."
        )
    if not pairs[0][0].requires_grad:
        raise ValueError(
            f"the output of layer={features!r} depends on no trainable parameter; nothing to aggregate."
        )
    return pairs[0]


def check_bypass(used: Sequence[Sequence[bool]], names: list[str], features: str) -> None:
    """Raise an error if all tasks use a parameter after the features: it would not be aggregated.

    `used` says whether a task uses a parameter.
    """
    bypass = [name for name, column in zip(names, zip(*used)) if all(column)]
    if bypass and len(used) > 1:
        raise ValueError(
            f"all tasks use {', '.join(bypass[:5])} outside of layer={features!r}, so the gradients of"
            " these parameters would not be aggregated; use the last module that all tasks share, or"
            " layer=None."
        )
