"""Gradients of heterogeneous (named) tasks, each with its own head, loss and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..episode import Episode
from ..functional import Params
from .base import TaskGradients
from .examples import label_count, setting
from .exchange import LOCAL, Exchange
from .features import check_bypass
from .loop import leaves
from .passes import task_passes
from .problem import TaskProblem
from .shards import ExampleShards

Grads = list[tuple[Tensor | None, ...]]  # indexed by task, then by input


def named_gradients(
    problems: Mapping[str, TaskProblem],
    episodes: Mapping[str, Episode],
    shared: Params,
    adapter_params: Params,
    features: str | None = None,
    exchange: Exchange = LOCAL,
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
        exchange: among the processes, if they have different examples of the tasks.

    Raises:
        ValueError: the tasks share no parameter; the objective of a task depends on no parameter; the tasks
            do not share one input; `features` is not the name of the last module that all tasks share; no
            process has a label of a task.
    """
    shared, adapter_params = leaves(shared), leaves(adapter_params)
    inputs, tasks = [*shared.values(), *adapter_params.values()], list(problems)
    shares: Tensor | None = None
    with exchange.together() as agreement:
        labeled = tasks
        if isinstance(exchange, ExampleShards):
            agreement |= setting(problems, episodes, {**shared, **adapter_params}, features)
            numbers = [
                label_count(problem.loss, episodes[task].query) for task, problem in problems.items()
            ]
            counts = torch.stack([number.double() for number in numbers]).tolist()
            labeled = [task for task, count in zip(tasks, counts) if count]
        local = task_passes(problems, episodes, labeled, shared, adapter_params, features)
    zero = inputs[0].new_zeros(())
    losses = torch.stack([local.losses.get(task, zero) for task in tasks])
    grads: Grads = [local.grads.get(task, (None,) * len(inputs)) for task in tasks]
    used = [[gradient is not None for gradient in row] for row in grads]
    if isinstance(exchange, ExampleShards):
        losses, shares, used = exchange.weigh(tasks, losses, counts, used)
        grads = [tuple(None if g is None else s.to(g) * g for g in row) for s, row in zip(shares, grads)]
    if features is None:
        _check_used(tasks, used, len(shared))
    result = _collect(losses, grads, used, shared, adapter_params, aggregated=features is None)
    if features is None:
        return result._replace(exchange=exchange)
    check_bypass([row[: len(shared)] for row in used], list(shared), features)
    output = local.output

    def to_parameters(directions: Params) -> Params:
        if output is None:  # this process has no labels
            return {}
        cotangent = directions[features].view_as(output).to(output)
        grads = torch.autograd.grad(output, list(shared.values()), cotangent, allow_unused=True)
        return {name: gradient for name, gradient in zip(shared, grads) if gradient is not None}

    absent = zero.new_zeros(0) if output is None else torch.zeros_like(output)
    rows = torch.stack([local.rows.get(task, absent) for task in tasks])
    if isinstance(exchange, ExampleShards) and shares is not None:
        rows = rows.to(zero) * shares.to(zero).view(-1, *[1] * (rows.dim() - 1))
        exchange = exchange.of_features()
    return result._replace(shared={features: rows}, to_parameters=to_parameters, exchange=exchange)


def _collect(
    losses: Tensor,
    grads: Grads,
    used: list[list[bool]],
    shared: Params,
    adapter_params: Params,
    aggregated: bool,
) -> TaskGradients:
    """Separate the gradients of parameters that all tasks use (if `aggregated`) from the others.

    `used` says whether a task uses a parameter, in any process.
    """
    rows: Params = {}
    specific: dict[str, dict[int, Tensor]] = {}
    for position, (name, param) in enumerate(shared.items()):
        by_task = {
            task: _or_zero(row[position], param) for task, row in enumerate(grads) if used[task][position]
        }
        if aggregated and len(by_task) == len(grads):
            rows[name] = torch.stack(list(by_task.values()))
        elif by_task:
            specific[name] = by_task
    adapter_params = {
        name: torch.stack([_or_zero(row[position], param) for row in grads])
        for position, (name, param) in enumerate(adapter_params.items(), len(shared))
    }
    return TaskGradients(losses, rows, adapter_params, specific)


def _or_zero(gradient: Tensor | None, param: Tensor) -> Tensor:
    return torch.zeros_like(param) if gradient is None else gradient


def _check_used(tasks: Sequence[str], used: list[list[bool]], num_shared: int) -> None:
    unused = [task for task, row in zip(tasks, used) if not any(row)]
    if unused:
        raise ValueError(
            f"the objectives of tasks {unused} depend on no trainable parameter; remove these tasks from"
            " the step, or look for a detach() in the computation of their losses."
        )
    if not any(all(column) for column in list(zip(*used))[:num_shared]):
        raise ValueError(
            f"the tasks {', '.join(map(repr, tasks))} share no parameter, so there is nothing to"
            " aggregate; use a model with a common body, or train them separately."
        )
