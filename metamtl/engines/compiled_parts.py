"""The functions that `Compiled` compiles.

Every object that they use is an argument, so that the guards of torch.compile detect every change.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_map

from ..adapters.inner_loop import Carry, Start, StepContext, run, stages
from ..episode import Batch
from ..functional import Params
from ..functional.convolution import as_products
from ..objectives.base import reads
from .problem import TaskProblem


def _each(batched: bool, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` for every task along the task axis of the tensors; if not batched, for one task."""
    if not batched:
        return function(*args)
    axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, args)
    return vmap(function, in_dims=axes)(*args)


def whole(
    problem: TaskProblem, batched: bool, shared: Params, adapter_params: Params, data: Any
) -> tuple[Params, Params, Tensor]:
    """The gradients with respect to `shared` and `adapter_params`, and the query losses."""

    def objective(shared: Params, adapter_params: Params, data: Any) -> tuple[Tensor, Tensor]:
        support, query, task = data
        support = None if support is None else Batch(*support)
        with problem.substituted_adapter(adapter_params):
            params = {**problem.frozen, **shared}
            if reads(problem.objective) == "stages":
                path = list(stages(problem.loop, params, adapter_params, support, task))
            else:
                path = [run(problem.loop, params, adapter_params, support, task)]
        value, loss = problem.result(shared, path, support, query)
        return value, loss

    def one_task(data: Any) -> tuple[Params, Params, Tensor]:
        (rows, adapter_rows), loss = grad(objective, argnums=(0, 1), has_aux=True)(
            shared, adapter_params, data
        )
        return rows, adapter_rows, loss

    return _each(batched, one_task, data)  # type: ignore[no-any-return]


def init(
    problem: TaskProblem, batched: bool, shared: Params, adapter_params: Params, support: Any, task: Any
) -> tuple[Carry, Any]:
    """The first carry and the features of every task."""

    def one_task(support: Any, task: Any) -> tuple[Carry, Any]:
        start = _start(problem, shared, adapter_params, support, task)
        return start.carry, start.features

    return _each(batched, one_task, support, task)  # type: ignore[no-any-return]


def init_vjp(
    problem: TaskProblem,
    batched: bool,
    shared: Params,
    adapter_params: Params,
    support: Any,
    task: Any,
    grads: Any,
) -> tuple[Params, Params]:
    """The vector-Jacobian product of `init` with respect to all parameters, for every task."""

    def one_task(support: Any, task: Any, grads: Any) -> tuple[Params, Params]:
        def start(shared: Params, adapter_params: Params) -> tuple[Carry, Any]:
            result = _start(problem, shared, adapter_params, support, task)
            return result.carry, result.features

        return vjp(start, shared, adapter_params)[1](grads)  # type: ignore[no-any-return]

    return _each(batched, one_task, support, task, grads)  # type: ignore[no-any-return]


def step(
    problem: TaskProblem, batched: bool, carry: Carry, context: StepContext, k: Tensor, first_order: bool
) -> Carry:
    """Inner step `k` of every task."""

    def one_task(carry: Carry, features: Any, fixed: Any) -> Carry:
        task_context = StepContext(context.params, context.adapter_params, features, fixed)
        return problem.loop.step(carry, task_context, k, first_order=first_order)

    return _each(batched, one_task, carry, context.features, context.fixed)


def evaluation_step(
    problem: TaskProblem, batched: bool, carry: Carry, context: StepContext, k: Tensor
) -> Carry:
    """A first-order `step`. Convolutions with task-specific weights run as matrix products: faster here."""
    with as_products() if batched else nullcontext():
        return step(problem, batched, carry, context, k, True)


def step_vjp(
    problem: TaskProblem,
    batched: bool,
    carry: Carry,
    context: StepContext,
    k: Tensor,
    first_order: bool,
    cotangent: Carry,
) -> tuple[Carry, Params, Params, Any]:
    """The vector-Jacobian product of `step` with respect to the carry and the context's tensors."""

    def one_task(carry: Carry, features: Any, fixed: Any, cotangent: Carry) -> Any:
        def task_step(carry: Carry, params: Params, adapter_params: Params, features: Any) -> Carry:
            task_context = StepContext(params, adapter_params, features, fixed)
            return problem.loop.step(carry, task_context, k, first_order=first_order)

        return vjp(task_step, carry, context.params, context.adapter_params, features)[1](cotangent)

    args = (carry, context.features, context.fixed, cotangent)
    return _each(batched, one_task, *args)  # type: ignore[no-any-return]


def end(
    problem: TaskProblem, batched: bool, carry: Carry, shared: Params, k: Tensor, support: Any, query: Any
) -> tuple[Params, Carry, Tensor]:
    """As `whole`, with the gradients of the objective with respect to `shared` and the last carry."""

    def one_task(carry: Carry, support: Any, query: Any) -> tuple[Params, Carry, Tensor]:
        def objective(shared: Params, carry: Carry) -> tuple[Tensor, Tensor]:
            adapted = problem.loop.finish(carry, {**problem.frozen, **shared}, k)
            value, loss = problem.result(shared, [adapted], support, query)
            return value, loss

        (shared_grads, carry_grads), loss = grad(objective, argnums=(0, 1), has_aux=True)(shared, carry)
        return shared_grads, carry_grads, loss

    return _each(batched, one_task, carry, support, query)  # type: ignore[no-any-return]


def output(problem: TaskProblem, batched: bool, carry: Carry, shared: Params, k: Tensor, query: Any) -> Any:
    """The outputs of the adapted models on the query sets."""

    def one_task(carry: Carry, x: Any) -> Any:
        return problem.output(problem.loop.finish(carry, {**problem.frozen, **shared}, k), x)

    return _each(batched, one_task, carry, query)


def _start(problem: TaskProblem, shared: Params, adapter_params: Params, support: Any, task: Any) -> Start:
    support = None if support is None else Batch(*support)
    with problem.substituted_adapter(adapter_params):
        return problem.loop.init({**problem.frozen, **shared}, support, task)
