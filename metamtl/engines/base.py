"""What an engine is: it computes one loss and one gradient row for each task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..functional import Params

# function(shared, own, task's data) -> (objective, query loss)
Function = Callable[[Params, Params, Any], tuple[Tensor, Tensor]]


def _as_it_is(directions: Params) -> Params:
    return directions


class Rows(NamedTuple):
    """What an engine found for T tasks.

    Attributes:
        losses: the query losses, `[T]`.
        shared: the gradient of each task's objective to the shared parameters, `[T, ...]` by name.
        own: the gradient to the adapter's own parameters, by name.
        private: the gradient to parameters of the model that not all the tasks share, by name.
        pull: from an aggregated direction, by the names in `shared`, to gradients by parameter. The
            direction is the gradient, except where the rows are over features.
    """

    losses: Tensor
    shared: Params
    own: Params
    private: Params
    pull: Callable[[Params], Params] = _as_it_is


class Engine(ABC):
    """Runs a function of one task over T alike tasks.

    Engines differ in speed and memory, never in what they compute. `data` is any nesting of tensors
    with a leading task axis (and Nones); the function gets the same nesting without that axis.
    """

    def check(self, model: nn.Module) -> None:  # noqa: B027
        """Refuse a module that this engine cannot run, before anything is computed."""

    @abstractmethod
    def rows(self, function: Function, shared: Params, own: Params, data: Any) -> Rows:
        """Losses and gradients of `function(shared, own, data_t) -> (objective, loss)`."""

    @abstractmethod
    def map(self, function: Callable[[Any], Any], data: Any) -> Any:
        """`function(data_t)` for each task, its tensors stacked; no graph is built."""


def at(data: Any, index: int | slice) -> Any:
    """The data of one task, or of those of a slice."""
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, data)


def count(data: Any) -> int:
    """How many tasks these are the data of."""
    return next(leaf.shape[0] for leaf in tree_leaves(data) if isinstance(leaf, Tensor))


def added(gradients: list[Tensor]) -> Tensor:
    """Their sum; of a single one itself."""
    return gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(0)


def stack(results: list[Any]) -> Any:
    """Trees of tensors, one for each task, into one tree with a leading task axis."""
    return tree_map(lambda *leaves: torch.stack(leaves), *results)
