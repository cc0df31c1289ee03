"""Gradients and outputs from parts that are compiled once each and called K times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..adapters.inner_loop import Carry, Start, StepContext, device_of
from ..functional import Params
from ..functional.scan import carries, last_carry
from .base import num_tasks
from .kinds import Kind
from .problem import TaskProblem


def gradients_by_parts(
    kind: Kind, problem: TaskProblem, batched: bool, shared: Params, own: Params, data: Any
) -> tuple[tuple[Params, Params, Tensor], int]:
    """The gradients with respect to `shared` and `own`, the query losses, and the evaluations of a task.

    `c_{k+1} = step_k(c_k)` forward, `v_k = J_k^T v_{k+1}` back, where J_k is the Jacobian of step k. Of
    every step only the carry is stored.
    """
    loop, (support, query, task) = problem.loop, data
    start, context, ks = _start(kind, problem, batched, shared, own, data)
    of_shared, losses, cotangent, of_context, evaluations = kind.step_loop(loop)(
        problem, batched, start, context, shared, (support, query), ks
    )
    of_params, of_own, of_features = of_context
    rows = {name: row + of_params[name] if name in of_params else row for name, row in of_shared.items()}
    if loop.starts_from_params:
        rows = {
            name: row + cotangent[0][name] if name in cotangent[0] else row for name, row in rows.items()
        }
        return (rows, of_own, losses), evaluations
    more, of_own_start = kind.part("init_vjp")(
        problem, batched, shared, own, support, task, (cotangent, of_features)
    )
    rows = {name: row + more[name] for name, row in rows.items()}
    of_own = tree_map(torch.add, of_own_start, of_own) if of_own else of_own_start
    return (rows, of_own, losses), evaluations


def outputs_by_parts(
    kind: Kind, problem: TaskProblem, batched: bool, shared: Params, own: Params, data: Any, every: bool
) -> list[Any]:
    """The outputs on the query sets after adaptation, or at each stage of it."""
    carry, context, ks = _start(kind, problem, batched, shared, own, data)
    step, output, steps = kind.part("evaluation_step"), kind.part("output"), range(problem.loop.num_steps)

    def forward(carry: Carry, context: StepContext, k: int) -> Carry:
        return step(problem, batched, carry, context, ks[k])

    if not every:
        carry = last_carry(forward, carry, context, steps)
        return [output(problem, batched, carry, shared, ks[-1], data[1][0])]
    stages = [carry, *carries(forward, carry, context, steps)]
    return [output(problem, batched, stage, shared, k, data[1][0]) for stage, k in zip(stages, ks)]


def _start(
    kind: Kind, problem: TaskProblem, batched: bool, shared: Params, own: Params, data: Any
) -> tuple[Carry, StepContext, tuple[Tensor, ...]]:
    """The first carry of every task, what steps read, and the numbers 0, ..., K."""
    support, _, task = data
    loop = problem.loop
    if loop.starts_from_params:
        start = loop.init({**problem.frozen, **shared}, support, task)
        carry = start.carry
        if batched:
            count = num_tasks(data)
            carry = tree_map(lambda leaf: leaf.expand(count, *leaf.shape).contiguous(), carry)
        start = start._replace(carry=carry)
    else:
        carry, features = kind.part("init")(problem, batched, shared, own, support, task)
        start = Start(carry, features)
    context = loop.context(start, shared, own, support)
    return start.carry, context, torch.arange(loop.num_steps + 1, device=device_of(shared)).unbind()
