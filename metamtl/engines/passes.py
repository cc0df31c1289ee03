"""Forward and backward passes of heterogeneous (named) tasks, one by one, with plain autograd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..episode import Episode
from ..functional import Params, forward
from .features import check_features, cut_at, only_pair
from .problem import TaskProblem


class TaskPasses(NamedTuple):
    """Losses and gradients of named tasks, by task.

    Attributes:
        grads: the gradient with respect to every parameter; None if the task does not use it.
        rows: the gradients with respect to the features, if there are any.
        output: the features.
    """

    losses: dict[str, Tensor]
    grads: dict[str, tuple[Tensor | None, ...]]
    rows: dict[str, Tensor]
    output: Tensor | None


def task_passes(
    problems: Mapping[str, TaskProblem],
    episodes: Mapping[str, Episode],
    labeled: list[str],
    shared: Params,
    adapter_params: Params,
    features: str | None,
) -> TaskPasses:
    """Run the tasks in `labeled`, forward and backward."""
    groups = _groups(problems, episodes)
    if features is not None:
        check_features(problems, groups, episodes, features)
    model, inputs = next(iter(problems.values())).model, [*shared.values(), *adapter_params.values()]
    local, output = TaskPasses({}, {}, {}, None), None
    with torch.enable_grad(), cut_at(model, features) as pairs:
        for group in groups:
            group = [task for task in group if task in labeled]
            outputs = _outputs([problems[task] for task in group], group, episodes, shared, features)
            for task in group:
                problem, episode = problems[task], episodes[task]
                support, query = episode.support, episode.query
                stages = problem.stages(shared, adapter_params, support, episode.task)
                again = problem.again(adapter_params, support, episode.task)
                objective, loss = problem.result(shared, stages, support, query, outputs.get(task), again)
                # The tasks of the group share one pass through the model, so its graph is retained.
                retain = features is not None or (len(outputs) > 0 and task != group[-1])
                if features is None:
                    local.grads[task] = _gradients(objective, inputs, retain)
                else:
                    output, leaf = only_pair(pairs, features)
                    row = _gradients(objective, [leaf, *inputs], retain)
                    local.grads[task] = row[1:]
                    if row[0] is not None:
                        local.rows[task] = row[0]
                local.losses[task] = loss.detach()
    unused = [task for task in labeled if task not in local.rows]
    if features is not None and unused:
        raise ValueError(f"the objectives of tasks {unused} do not depend on the output of {features!r}.")
    return local._replace(output=output)


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
    if not group or (len(group) == 1 and features is None):
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
