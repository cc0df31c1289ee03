"""Gradients of heterogeneous (named) tasks, each with its own head, loss and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..episode import Episode
from ..functional import Params, forward
from .base import TaskGradients
from .features import check_bypass, check_features, cut_at, only_pair
from .loop import leaves
from .problem import TaskProblem

Grads = list[tuple[Tensor | None, ...]]  # indexed by task, then by input


def named_gradients(
    problems: Mapping[str, TaskProblem],
    episodes: Mapping[str, Episode],
    shared: Params,
    own: Params,
    features: str | None = None,
) -> TaskGradients:
    """Compute the gradient of every named task with respect to the parameters or features that all share.

    Tasks run one by one with plain autograd. Tasks without a support set whose `query.x` is the same object
    share one pass through the model.

    Args:
        features: if None, the gradients are with respect to the parameters that all tasks use. Otherwise
            the name of a module: the gradients are with respect to its output, `[T, *output]`. The backward
            pass of each task ends there, and `to_parameters` propagates the aggregated direction from there
            to the parameters in one pass. For aggregators that are linear in the gradients (Mean, Sum,
            fixed weights), the result is the same.

    Raises:
        ValueError: the tasks share no parameter; the objective of a task depends on no parameter; the tasks
            do not share one input; `features` is not the name of the last module that all tasks share.
    """
    shared, own = leaves(shared), leaves(own)
    inputs = [*shared.values(), *own.values()]
    groups = _groups(problems, episodes)
    if features is not None:
        check_features(problems, groups, episodes, features)
    model = next(iter(problems.values())).model
    losses: dict[str, Tensor] = {}
    grads: dict[str, tuple[Tensor | None, ...]] = {}
    with torch.enable_grad(), cut_at(model, features) as pairs:
        for group in groups:
            outputs = _outputs([problems[task] for task in group], group, episodes, shared, features)
            bottom = [] if features is None else [only_pair(pairs, features)[1]]
            for task in group:
                problem, episode = problems[task], episodes[task]
                support, query = episode.support, episode.query
                end = problem.adapt(shared, own, support, episode.task)
                objective, loss = problem.result(shared, end, support, query, outputs.get(task))
                # The tasks of the group share one pass through the model, so its graph is retained.
                retain = len(outputs) > 0 and task != group[-1]
                grads[task] = _gradients(objective, [*bottom, *inputs], retain or features is not None)
                losses[task] = loss.detach()
    ordered = [grads[task] for task in problems]
    stacked = torch.stack([losses[task] for task in problems])
    if features is None:
        _check_used(problems, ordered, len(shared))
        return _collect(stacked, ordered, shared, own)
    rows = [row[0] for row in ordered]
    unused = [task for task, row in zip(problems, rows) if row is None]
    if unused:
        raise ValueError(f"the objectives of tasks {unused} do not depend on the output of {features!r}.")
    param_grads = [row[1:] for row in ordered]
    check_bypass(param_grads, list(shared), features)
    output, _ = only_pair(pairs, features)
    result = _collect(stacked, param_grads, shared, own, aggregated=False)

    def to_parameters(directions: Params) -> Params:
        cotangent = directions[features].view_as(output).to(output)
        grads = torch.autograd.grad(output, list(shared.values()), cotangent, allow_unused=True)
        return {name: gradient for name, gradient in zip(shared, grads) if gradient is not None}

    feature_grads = torch.stack([row for row in rows if row is not None])
    return result._replace(shared={features: feature_grads}, to_parameters=to_parameters)


def _collect(
    losses: Tensor, grads: Grads, shared: Params, own: Params, aggregated: bool = True
) -> TaskGradients:
    """Separate the gradients of parameters that all tasks use (if `aggregated`) from the others."""
    columns = list(zip(*grads))
    rows: Params = {}
    specific: dict[str, dict[int, Tensor]] = {}
    for name, column in zip(shared, columns):
        by_task = {task: gradient for task, gradient in enumerate(column) if gradient is not None}
        if aggregated and len(by_task) == len(column):
            rows[name] = torch.stack(list(by_task.values()))
        elif by_task:
            specific[name] = by_task
    adapter_params = {
        name: torch.stack([torch.zeros_like(param) if g is None else g for g in column])
        for (name, param), column in zip(own.items(), columns[len(shared) :])
    }
    return TaskGradients(losses, rows, adapter_params, specific)


def _groups(problems: Mapping[str, TaskProblem], episodes: Mapping[str, Episode]) -> list[list[str]]:
    """Group the tasks without adaptation by their input; every other task is a group of its own."""
    groups: dict[Any, list[str]] = {}
    for task, problem in problems.items():
        groups.setdefault(task if problem.adapts else id(episodes[task].query[0]), []).append(task)
    return list(groups.values())


def _outputs(
    problems: list[TaskProblem],
    group: list[str],
    episodes: Mapping[str, Episode],
    shared: Params,
    features: str | None,
) -> dict[str, Any]:
    """The model's outputs for a group of tasks, from one pass. Empty for a single task without features."""
    if len(group) == 1 and features is None:
        return {}
    first = problems[0]
    params = {**first.frozen, **shared}
    x = episodes[group[0]].query[0]
    return dict(forward(first.model, params, x, tuple(group), structure=first.structure))


def _gradients(objective: Tensor, inputs: list[Tensor], keep: bool) -> tuple[Tensor | None, ...]:
    if not objective.requires_grad:
        return (None,) * len(inputs)
    try:
        grads = torch.autograd.grad(objective, inputs, allow_unused=True, retain_graph=keep)
        return tuple(None if g is None else g.to_dense() for g in grads)  # embeddings may be sparse
    except RuntimeError as error:
        if "donated buffers" not in str(error):
            raise
        raise RuntimeError(
            "a module compiled by torch.compile frees its buffers in the first of several backward passes;"
            " set torch._functorch.config.donated_buffer = False before its first call, or compute the"
            " gradients at its output (Recipe(layer=...)), which needs a single pass through it."
        ) from error


def _check_used(problems: Mapping[str, TaskProblem], grads: Grads, num_shared: int) -> None:
    unused = [task for task, row in zip(problems, grads) if all(gradient is None for gradient in row)]
    if unused:
        raise ValueError(
            f"the objectives of tasks {unused} depend on no trainable parameter; remove these tasks from"
            " the step, or look for a detach() in the computation of their losses."
        )
    columns = list(zip(*grads))[:num_shared]
    if not any(all(gradient is not None for gradient in column) for column in columns):
        raise ValueError(
            f"the tasks {', '.join(map(repr, problems))} share no parameter, so there is nothing to"
            " aggregate; use a model with a common body, or train them separately."
        )
