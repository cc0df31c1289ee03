"""One task after the other with plain autograd; supports every module."""

from __future__ import annotations

from typing import Any

import torch

from ..functional import Params, trainable
from .base import Engine, TaskGradients, split_tasks, stack
from .problem import TaskProblem


class Loop(Engine):
    """Process tasks one by one, with plain autograd in the inner and the outer loop.

    Memory is that of one task. Every module that supports `backward()` is supported.
    """

    def __repr__(self) -> str:
        return "Loop()"

    def gradients(
        self, problem: TaskProblem, shared: Params, adapter_params: Params, data: Any
    ) -> TaskGradients:
        shared, adapter_params = leaves(shared), leaves(adapter_params)
        inputs = [*shared.values(), *adapter_params.values()]
        losses = []
        parts = split_tasks(data)
        # One block for the gradients of all tasks: separate allocations between the temporary tensors of
        # the tasks would fragment the heap.
        columns = [param.new_empty((len(parts), *param.shape)) for param in inputs]
        for task, part in enumerate(parts):
            with torch.enable_grad():
                objective, loss = problem(shared, adapter_params, part)
            if not objective.requires_grad:
                raise ValueError(DETACHED.format(task=task))
            grads = torch.autograd.grad(objective, inputs, allow_unused=True, materialize_grads=True)
            for column, gradient in zip(columns, grads):
                column[task] = gradient.to_dense()  # the gradient of an embedding may be sparse
            losses.append(loss.detach())
            del objective, loss, grads, gradient  # free the graph before the next one is built
        shared_grads = dict(zip(shared, columns))
        adapter_grads = dict(zip(adapter_params, columns[len(shared) :]))
        return TaskGradients(torch.stack(losses), shared_grads, adapter_grads, {})

    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        shared = trainable(problem.model)
        with torch.no_grad():
            tasks = [adapted_outputs(problem, shared, part, every) for part in split_tasks(data)]
        return [stack(list(stage)) for stage in zip(*tasks)]


DETACHED = (
    "the objective of task {task} depends on no trainable parameter; look for a detach() in the computation"
    " of its loss."
)


def adapted_outputs(problem: TaskProblem, shared: Params, data: Any, every: bool) -> list[Any]:
    """The output on one task's query set after adaptation; with `every`, at each stage of adaptation."""
    support, query, task = data
    if every:
        return [problem.output(params, query[0]) for params in problem.path(shared, support, task)]
    return [problem.output(problem.adapt(shared, {}, support, task), query[0])]


def leaves(params: Params) -> Params:
    """New autograd leaves with the same values, so that no graph of the user is extended."""
    return {name: param.detach().requires_grad_() for name, param in params.items()}
