"""One task after the other, by plain autograd: the engine that takes any module."""

from __future__ import annotations

from typing import Any

import torch

from ..functional import Params, trainable
from .base import Engine, TaskGradients, split_tasks, stack
from .problem import TaskProblem


class Loop(Engine):
    """Tasks one by one, with plain autograd inside and outside; memory is that of one task.

    It takes every module that `backward()` takes.
    """

    def __repr__(self) -> str:
        return "Loop()"

    def gradients(self, problem: TaskProblem, shared: Params, own: Params, data: Any) -> TaskGradients:
        shared, own = leaves(shared), leaves(own)
        inputs = [*shared.values(), *own.values()]
        losses, evaluations = [], 0
        parts = split_tasks(data)
        # One block for the gradients of all tasks: single ones, left between the temporaries of a task,
        # fragment the heap.
        columns = [param.new_empty((len(parts), *param.shape)) for param in inputs]
        for task, part in enumerate(parts):
            with torch.enable_grad():
                objective, loss, passes = problem(shared, own, part)
            if not objective.requires_grad:
                raise ValueError(DETACHED.format(task=task))
            grads = torch.autograd.grad(objective, inputs, allow_unused=True, materialize_grads=True)
            for column, gradient in zip(columns, grads):
                column[task] = gradient.to_dense()  # that of a sparse embedding
            losses.append(loss.detach())
            evaluations += passes
            del objective, loss, grads, gradient  # a graph must not stay until the next one is built
        of_shared = dict(zip(shared, columns))
        of_adapter = dict(zip(own, columns[len(shared) :]))
        return TaskGradients(torch.stack(losses), of_shared, of_adapter, {}, evaluations)

    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        shared = trainable(problem.model)
        with torch.no_grad():
            tasks = [adapted_outputs(problem, shared, part, every) for part in split_tasks(data)]
        return [stack(list(stage)) for stage in zip(*tasks)]


DETACHED = (
    "the objective of task {task} depends on no trainable parameter; look for a detach() on the way to its"
    " loss."
)


def adapted_outputs(problem: TaskProblem, shared: Params, data: Any, every: bool) -> list[Any]:
    """The output on one task's query set after adaptation, or at each stage of it."""
    support, query, task = data
    if every:
        return [problem.output(params, query[0]) for params in problem.path(shared, support, task)]
    return [problem.output(problem.adapt(shared, {}, support, task), query[0])]


def leaves(params: Params) -> Params:
    """New leaves of autograd with the same values, so that a graph of the user's is left alone."""
    return {name: param.detach().requires_grad_() for name, param in params.items()}
