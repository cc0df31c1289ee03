"""Directional derivatives of every task's objective, in forward mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import Params
from ..recipes import Recipe
from .arguments import Episodes, Losses
from .derivatives import objective_derivative
from .directions import check_direction, inner
from .functions import TaskFunctions
from .gradients import Gradients
from .result import Result, heatmap


@dataclass(frozen=True)
class Derivatives(Result):
    """The derivative of task j's objective (column) along direction i (row).

    Attributes:
        matrix: `[D, T]`, in double precision on the CPU; below zero, a step along the direction helps.
        directions: the names of the rows.
        tasks: the names of the columns.
        mode: "forward", or "reverse" where the model or the adapter has no forward mode.
    """

    matrix: Tensor = field(repr=False)
    directions: tuple[str, ...]
    tasks: tuple[str, ...]
    mode: str = "forward"

    def scalars(self) -> dict[str, float]:
        pairs = ((d, t) for d in self.directions for t in self.tasks)
        return {f"{d}/{t}": value for (d, t), value in zip(pairs, self.matrix.flatten().tolist())}

    def plot(self, ax: Any = None) -> Any:
        return heatmap(ax, self.matrix, self.directions, self.tasks, "directional derivatives")


def directional_derivatives(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    directions: Gradients | Mapping[str, Params],
) -> Derivatives:
    """Compute the derivative of every task's objective along every direction.

    `d/d eta objective_j(theta + eta v_i)` at `eta = 0`, through the adaptation, by `torch.func.jvp`: one
    forward pass for each pair, which stores no activations, and no finite differences. `Gradients` stand
    for descent along each row, `v_i = -g_i`, so that the matrix is minus the Gramian. Implicit gradients
    (`Implicit`) and user-defined `autograd.Function`s without `jvp` have no forward mode. Then one backward
    pass for each task computes the same numbers, and `mode` is "reverse".

    Args:
        model, recipe, episodes, loss: as in `meta_backward`.
        directions: exact `Gradients`, or tensors by parameter name for each name of a direction, such as
            `{"update": {"weight": ..., "bias": ...}}`; parameters without an entry stay unchanged.

    Raises:
        TypeError, ValueError: arguments do not work together; a direction does not have the shapes of the
            parameters.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(2, torch.Generator().manual_seed(0))
    >>> up = {"up": {name: torch.ones_like(p) for name, p in model.named_parameters()}}
    >>> directional_derivatives(model, recipes.maml(), episodes, family.loss, up).matrix.shape
    torch.Size([1, 2])
    """
    tasks = TaskFunctions.of(model, recipe, episodes, loss)
    vectors = as_directions(directions, tasks)
    matrix, mode = torch.zeros(len(vectors), len(tasks), dtype=torch.float64), "forward"
    for j in range(len(tasks)):
        column = _forward(tasks, j, vectors) if mode == "forward" else None
        if column is None:
            mode, column = "reverse", _reverse(tasks, j, vectors)
        if not any(column):  # a detached objective has no error in forward mode
            tasks.check_differentiable(j)
        matrix[:, j] = torch.tensor(column, dtype=torch.float64)
    return Derivatives(matrix, tuple(vectors), tasks.names, mode)


def as_directions(directions: Any, tasks: TaskFunctions) -> dict[str, Params]:
    """Check directions; `Gradients` become descent directions."""
    if isinstance(directions, Gradients):
        descent = ((task, directions.direction(task)) for task in directions.tasks)
        directions = {task: {name: -g for name, g in row.items()} for task, row in descent}
    if not isinstance(directions, Mapping) or not directions:
        raise TypeError(
            f"directions is a {type(directions).__name__} without an entry; pass Gradients, or a dict of"
            " directions by name."
        )
    return {str(n): check_direction(v, tasks.params, f"directions[{n!r}]") for n, v in directions.items()}


def _forward(tasks: TaskFunctions, task: int, directions: Mapping[str, Params]) -> list[float] | None:
    """The derivatives of one task in forward mode; None if it is not available."""
    try:
        return [float(objective_derivative(tasks, task, direction)) for direction in directions.values()]
    except (NotImplementedError, RuntimeError, ValueError) as error:
        if not any(words in str(error) for words in _NO_FORWARD_MODE):
            raise
        return None


def _reverse(tasks: TaskFunctions, task: int, directions: Mapping[str, Params]) -> list[float]:
    names = dict.fromkeys(name for direction in directions.values() for name in direction)
    grads = tasks.gradient(task, {name: tasks.params[name] for name in names})
    return [inner(direction, grads) for direction in directions.values()]


# Words in the errors of torch, and of `interop`, about operations without forward mode or torch.func.
_NO_FORWARD_MODE = ("jvp", "forward AD", "forward mode", "setup_context", "inside vmap or another")
