"""Base class of engines, and the type of their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
        losses: the query losses, `[T]`; support losses for tasks without queries.
        shared: the gradient of each task's objective with respect to the shared parameters, `[T, ...]` by
            name (the rows of the Jacobian).
        adapter_params: the same for the adapter's own parameters.
        task_specific: the gradients of parameters that only some tasks use, by parameter name and then by
            the index of the task.
        to_parameters: maps an aggregated direction, with the names of `shared`, to the gradients of the
            parameters. This is the identity unless the gradients are with respect to features.
        exchange: among the processes that share the tasks. `shared` and `adapter_params` have the rows of
            this process's tasks, `losses` those of all tasks.
    """

    losses: Tensor
    shared: Params
    adapter_params: Params
    task_specific: dict[str, dict[int, Tensor]]
    to_parameters: Callable[[Params], Params] = _identity
    exchange: Exchange = LOCAL

    def matrices(self) -> Params:
        """The rows of `shared` as matrices, `[T, n]` by name."""
        return {name: rows.reshape(len(rows), rows.shape[1:].numel()) for name, rows in self.shared.items()}

    def matrix(self) -> Tensor:
        """The rows of `shared`, side by side in one matrix `[T, n]`."""
        complex_names = [name for name, rows in self.shared.items() if rows.is_complex()]
        if complex_names:
            raise TypeError(
                f"the aggregator reads gradients, but those of {', '.join(complex_names[:5])} are complex;"
                " store real and imaginary parts in one real parameter [..., 2] and call"
                " torch.view_as_complex in the forward pass, or use an aggregator that reads losses only."
            )
        matrices = list(self.matrices().values())
        return matrices[0] if len(matrices) == 1 else torch.cat(matrices, 1)


class TaskGroup(NamedTuple):
    """Tasks of equal shape in a meta-batch.

    Attributes:
        problem: the computation of one task.
        data: `(support, query, task ids)` with a leading task axis.
        positions: the positions of the tasks in the meta-batch, ascending.
    """

    problem: TaskProblem
    data: Any
    positions: Sequence[int]


class Engine(ABC):
    """Base class for engines. An engine computes the loss and the gradient of every task of a meta-batch.

    Engines differ in speed and memory, but compute the same values. `data` is `(support, query, task ids)`:
    nested tensors with a leading task axis. Leaves that are not tensors are the same for all tasks.
    """

    def check(self, model: nn.Module) -> None:  # noqa: B027
        """Reject a model that this engine does not support, before anything is computed."""

    @abstractmethod
    def gradients(
        self, problem: TaskProblem, shared: Params, adapter_params: Params, data: Any
    ) -> TaskGradients:
        """The losses and gradients of all tasks.

        Args:
            problem: the computation of one task as pure functions.
            shared: the model's trainable parameters.
            adapter_params: the adapter's parameters.
        """

    @abstractmethod
    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        """The outputs of the adapted models on the query sets, `[T, Q, ...]`, without recording a graph.

        Returns:
            A list with the outputs after adaptation; with `every`, the outputs of each adaptation stage.
        """

    def group_gradients(
        self, groups: Sequence[TaskGroup], shared: Params, adapter_params: Params
    ) -> TaskGradients:
        """The losses and gradients of all tasks of a meta-batch, in its order.

        The tasks of a group run as one call of `gradients`, one group after the other.
        """
        parts = [self.gradients(group.problem, shared, adapter_params, group.data) for group in groups]
        if len(groups) == 1:
            return parts[0]
        order = torch.tensor([position for group in groups for position in group.positions]).argsort()

        def in_order(columns: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(columns))[order.to(columns[0].device)]

        return TaskGradients(
            losses=in_order([part.losses for part in parts]),
            shared={name: in_order([part.shared[name] for part in parts]) for name in parts[0].shared},
            adapter_params={
                name: in_order([part.adapter_params[name] for part in parts])
                for name in parts[0].adapter_params
            },
            task_specific={},
        )


def index_task(data: Any, index: int | slice) -> Any:
    """The data of one task, or of a slice of tasks."""
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, data)


def split_tasks(data: Any) -> list[Any]:
    """The data of each task."""
    leaves, spec = tree_flatten(data)
    count = num_tasks(data)
    columns = [leaf.unbind() if isinstance(leaf, Tensor) else (leaf,) * count for leaf in leaves]
    return [tree_unflatten(list(row), spec) for row in zip(*columns)]


def num_tasks(data: Any) -> int:
    """The number of tasks in `data`."""
    return next(leaf.shape[0] for leaf in tree_leaves(data) if isinstance(leaf, Tensor))


def stack(results: list[Any]) -> Any:
    """Stack trees of tensors, one for each task, into one tree with a leading task axis."""
    return tree_map(lambda *leaves: torch.stack(leaves), *results)


def concatenate(results: list[Any]) -> Any:
    """Concatenate trees of tensors along the leading task axis."""
    return results[0] if len(results) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *results)
