"""First derivatives in forward mode, and products with Hessians, of the functions of a task."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..episode import Batch
from ..functional import Params
from ..functional.scan import opened
from ..functional.third_order import differentiable_ops
from .arguments import check_depends
from .functions import TaskFunctions


def objective_derivative(tasks: TaskFunctions, task: int, direction: Params) -> Tensor:
    """The derivative of a task's objective along `direction`, by one pass in forward mode."""
    return _tangent(tasks, task, direction, lambda p, data: tasks.results(task, p, data)[0])[1]


def output_derivative(tasks: TaskFunctions, task: int, direction: Params) -> tuple[Any, Any]:
    """The output of the adapted model and its derivative along `direction`, by one pass in forward mode."""
    return _tangent(tasks, task, direction, lambda p, data: tasks.output(task, p, data))


def _tangent(
    tasks: TaskFunctions, task: int, direction: Params, function: Callable[[Params, Any], Any]
) -> tuple[Any, Any]:
    """`function(params, data of the task)` and its derivative along `direction`."""
    params = {name: tasks.params[name] for name in direction}
    support, query, ids = tasks.data[task]
    # Targets have explicit tangents of zero, because some losses fail on torch's implicit ones.
    targets, put = opened((None if support is None else support[1], query[1]))
    floating = [i for i, y in enumerate(targets) if y.is_floating_point()]

    def with_targets(params: Params, *values: Tensor) -> Any:
        filled = list(targets)
        for i, value in zip(floating, values):
            filled[i] = value
        first, second = put(filled)
        pair = None if support is None else Batch(support[0], first)
        return function(params, (pair, Batch(query[0], second), ids))

    primals = [targets[i] for i in floating]
    zeros = [torch.zeros_like(y) for y in primals]
    with differentiable_ops(), torch.enable_grad(), warnings.catch_warnings():
        # torch's own code for forward mode, which is loaded at the first call.
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        return torch.func.jvp(with_targets, (params, *primals), (direction, *zeros))  # type: ignore[return-value]


def hessian_product(tasks: TaskFunctions, task: int, names: tuple[str, ...]) -> Callable[[Params], Params]:
    """A function that multiplies a direction by the Hessian of a task's objective with respect to `names`.

    The gradient is computed and recorded once, by plain autograd, which supports most modules. A call is
    one backward pass through it.
    """
    with differentiable_ops(), torch.enable_grad():
        leaves = {name: tasks.params[name].clone().requires_grad_() for name in names}
        value = tasks.objective(task, leaves)
        check_depends(value, tasks.names[task])
        grads = torch.autograd.grad(value, list(leaves.values()), create_graph=True, allow_unused=True)
    recorded = {name: g for name, g in zip(names, grads) if g is not None and g.requires_grad}

    def product(direction: Params) -> Params:
        if not recorded:  # the objective is linear
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        cotangents = [direction[name] for name in recorded]
        columns = torch.autograd.grad(
            list(recorded.values()),
            list(leaves.values()),
            cotangents,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(names, columns))

    return product


def mean_hessian_product(
    tasks: TaskFunctions, names: tuple[str, ...]
) -> Callable[[list[Params]], list[Params]]:
    """A function that multiplies directions by the Hessian of the mean objective, one task at a time."""

    def products(directions: list[Params]) -> list[Params]:
        totals = [{name: torch.zeros_like(tasks.params[name]) for name in names} for _ in directions]
        for task in range(len(tasks)):
            product = hessian_product(tasks, task, names)
            for total, direction in zip(totals, directions):
                for name, vector in product(direction).items():
                    total[name] += vector / len(tasks)
        return totals

    return products
