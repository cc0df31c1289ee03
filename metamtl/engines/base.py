"""The base class of engines, and what they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..functional import Params
from .exchange import LOCAL, Exchange
from .problem import TaskProblem


def _identity(directions: Params) -> Params:
    return directions


class TaskGradients(NamedTuple):
    """Losses and gradients of T tasks.

    Attributes:
        losses: the query losses, `[T]`.
        shared: the gradient of each task's objective with respect to the shared parameters, `[T, ...]` by
            name: the rows of the Jacobian.
        adapter_params: the same for the adapter's own parameters.
        task_specific: for parameters that not all tasks use, by name, the gradients of the tasks that use
            it, by the task's position.
        evaluations: backward passes over a support or query set, summed over tasks.
        to_parameters: from an aggregated direction, by the names in `shared`, to gradients by parameter.
            The direction is the gradient, unless the gradients are with respect to features.
        exchange: among the processes that share the tasks. `shared` and `adapter_params` have the rows of
            this process's tasks, `losses` and `evaluations` those of all tasks.
    """

    losses: Tensor
    shared: Params
    adapter_params: Params
    task_specific: dict[str, dict[int, Tensor]]
    evaluations: int
    to_parameters: Callable[[Params], Params] = _identity
    exchange: Exchange = LOCAL


class Engine(ABC):
    """Base class for engines. An engine computes the loss and the gradient of every task of a meta-batch.

    Engines differ in speed and memory, never in what they compute. `data` is `(support, query, task ids)`,
    tensors with a leading task axis in any nesting; other leaves are the same for all tasks.
    """

    def check(self, model: nn.Module) -> None:  # noqa: B027
        """Reject a module that this engine cannot run, before anything is computed."""

    @abstractmethod
    def gradients(self, problem: TaskProblem, shared: Params, own: Params, data: Any) -> TaskGradients:
        """The losses and gradients of all tasks.

        Args:
            problem: one task as functions of its arguments.
            shared: the model's trainable parameters.
            own: the adapter's parameters.
        """

    @abstractmethod
    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        """The adapted model's outputs on the query sets, `[T, Q, ...]`; no graph is recorded.

        Returns:
            One entry: the outputs after adaptation; with `every`, one for each stage of adaptation.
        """


def index_task(data: Any, index: int | slice) -> Any:
    """The data of one task, or of those of a slice."""
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, data)


def split_tasks(data: Any) -> list[Any]:
    """The data of each task."""
    flat, spec = tree_flatten(data)
    count = num_tasks(data)
    columns = [leaf.unbind() if isinstance(leaf, Tensor) else (leaf,) * count for leaf in flat]
    return [tree_unflatten(list(leaves), spec) for leaves in zip(*columns)]


def num_tasks(data: Any) -> int:
    """The number of tasks in `data`."""
    return next(leaf.shape[0] for leaf in tree_leaves(data) if isinstance(leaf, Tensor))


def stack(results: list[Any]) -> Any:
    """Trees of tensors, one for each task, as one tree with a leading task axis."""
    return tree_map(lambda *leaves: torch.stack(leaves), *results)


def concatenate(results: list[Any]) -> Any:
    """Trees of tensors with a leading task axis, as one."""
    return results[0] if len(results) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *results)
