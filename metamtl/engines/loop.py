"""One task after the other: the plainest engine, and the one that takes any module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..functional import Params
from .base import Engine, Function, Rows, at, count, stack


class Loop(Engine):
    """Tasks one by one, with plain autograd around each; memory is that of one task."""

    def __repr__(self) -> str:
        return "Loop()"

    def rows(self, function: Function, shared: Params, own: Params, data: Any) -> Rows:
        shared, own = _leaves(shared), _leaves(own)
        inputs = [*shared.values(), *own.values()]
        losses, rows, totals = [], [], [torch.zeros_like(param) for param in own.values()]
        num_tasks = count(data)
        for task in range(num_tasks):
            with torch.enable_grad():
                objective, loss = function(shared, own, at(data, task))
            gradients = (
                torch.autograd.grad(objective, inputs, allow_unused=True, materialize_grads=True)
                if objective.requires_grad
                else tuple(torch.zeros_like(param) for param in inputs)  # it depends on nothing learned
            )
            losses.append(loss.detach())
            rows.append(dict(zip(shared, gradients)))
            for total, gradient in zip(totals, gradients[len(shared) :]):
                total += gradient / num_tasks
        return Rows(torch.stack(losses), stack(rows), dict(zip(own, totals)), {})

    def map(self, function: Callable[[Any], Any], data: Any) -> Any:
        with torch.no_grad():
            return stack([function(at(data, task)) for task in range(count(data))])


def _leaves(params: Params) -> Params:
    # Fresh leaves, so that a user's own graph around the parameters is left alone.
    return {name: param.detach().requires_grad_() for name, param in params.items()}
