"""Gradients and outputs from parts, each of which is compiled once and called K times."""

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
    kind: Kind, problem: TaskProblem, batched: bool, shared: Params, adapter_params: Params, data: Any
) -> tuple[Params, Params, Tensor]:
    """The gradients with respect to `shared` and `adapter_params`, and the query losses.

    The forward pass is `c_{k+1} = step_k(c_k)`, the backward pass `v_k = J_k^T v_{k+1}`, where J_k is the
    Jacobian of step k. Only the carry of every step is stored.
    """
    loop, (support, query, task) = problem.loop, data
    start, context, ks = _start(kind, problem, batched, shared, adapter_params, data)
    shared_grads, losses, cotangent, context_grads = kind.step_loop(loop)(
        problem, batched, start, context, shared, (support, query), ks
    )
    param_grads, adapter_grads, feature_grads = context_grads
    rows = {
        name: row + param_grads[name] if name in param_grads else row for name, row in shared_grads.items()
    }
    if loop.starts_from_params:
        rows = {
            name: row + cotangent[0][name] if name in cotangent[0] else row for name, row in rows.items()
        }
        return rows, adapter_grads, losses
    init_grads, init_adapter_grads = kind.part("init_vjp")(
        problem, batched, shared, adapter_params, support, task, (cotangent, feature_grads)
    )
    rows = {name: row + init_grads[name] for name, row in rows.items()}
    adapter_grads = (
        tree_map(torch.add, init_adapter_grads, adapter_grads) if adapter_grads else init_adapter_grads
    )
    return rows, adapter_grads, losses


def outputs_by_parts(
    kind: Kind,
    problem: TaskProblem,
    batched: bool,
    shared: Params,
    adapter_params: Params,
    data: Any,
    every: bool,
) -> list[Any]:
    """The outputs on the query sets after adaptation; with `every`, at each stage of adaptation."""
    carry, context, ks = _start(kind, problem, batched, shared, adapter_params, data)
    step, output, steps = kind.part("evaluation_step"), kind.part("output"), range(problem.loop.num_steps)

    def forward(carry: Carry, context: StepContext, k: int) -> Carry:
        return step(problem, batched, carry, context, ks[k])

    if not every:
        carry = last_carry(forward, carry, context, steps)
        return [output(problem, batched, carry, shared, ks[-1], data[1][0])]
    stages = [carry, *carries(forward, carry, context, steps)]
    return [output(problem, batched, stage, shared, k, data[1][0]) for stage, k in zip(stages, ks)]


def _start(
    kind: Kind, problem: TaskProblem, batched: bool, shared: Params, adapter_params: Params, data: Any
) -> tuple[Carry, StepContext, tuple[Tensor, ...]]:
    """The first carry of every task, the context of the steps, and the numbers 0, ..., K as tensors."""
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
        carry, features = kind.part("init")(problem, batched, shared, adapter_params, support, task)
        start = Start(carry, features)
    context = loop.context(start, shared, adapter_params, support)
    return start.carry, context, torch.arange(loop.num_steps + 1, device=device_of(shared)).unbind()
