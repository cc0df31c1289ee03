"""What a step on one task does to the others: measured, and predicted by the linearized model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..engines import Engine
from ..functional import Params
from ..recipes import Recipe
from .arguments import Episodes, Losses, check_analysis, check_lr
from .derivatives import output_derivative
from .directions import moved
from .functions import TaskFunctions
from .gradients import Gradients, gradients
from .relatedness import Relatedness, check_nonzero


def look_ahead(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    lr: float,
    *,
    grads: Gradients | None = None,
    engine: Engine | None = None,
) -> Relatedness:
    """The look-ahead affinity of TAG: the relative decrease of task j's loss after a step on task i.

    `Z_ij = 1 - L_j(theta - lr g_i) / L_j(theta)`, with the (meta-)gradient `g_i` of the shared parameters
    and the query loss `L_j` after adaptation. Above 0, task i helps task j. Fifty et al. 2021,
    https://arxiv.org/abs/2109.04617. It costs one gradient and T + 1 evaluations of the loss for each task.
    `Relatedness.mean` averages over training steps, as the paper does.

    Args:
        model, recipe, episodes, loss, engine: as in `gradients`.
        lr: the learning rate of the step.
        grads: exact gradients of the same call, if they are known.

    Raises:
        TypeError, ValueError: as `gradients`; a loss is zero; a loss after a step is not finite.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(3, torch.Generator().manual_seed(0))
    >>> affinity = look_ahead(model, recipes.maml(steps=1, lr=0.01), episodes, family.loss, lr=1e-3)
    >>> bool((affinity.matrix.diagonal() > 0).all())
    True
    """
    lr = check_lr(lr)
    tasks, rows = _start(model, recipe, episodes, loss, grads, engine)
    before = tasks.losses({})
    check_nonzero(before, tasks.names)
    after = [tasks.losses(moved(tasks.params, row, -lr)) for row in rows]
    return Relatedness(1 - torch.stack(after) / before, tasks.names, "look-ahead affinity")


def linearized(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    lr: float,
    *,
    grads: Gradients | None = None,
    engine: Engine | None = None,
) -> Relatedness:
    """Predict `look_ahead` with the model linearized around theta, without a step.

    `Z_ij = 1 - L_j(f_j - lr J_j g_i) / L_j(f_j)`, where `f_j` is the output of the adapted model on the
    query set of task j and `J_j` its Jacobian, through the adaptation; the loss is exact. One
    Jacobian-vector product for each pair, in forward mode. The linearization is that of Grad-TAG, Li,
    Sharma, Zhang 2024, https://arxiv.org/abs/2409.06091.

    Differs from the paper in: 1. the effect of one step instead of that of training the linear model on
    subsets of tasks; 2. exact products instead of random projections.

    Raises:
        TypeError, ValueError: as `look_ahead`.
        NotImplementedError: the model or the adapter has no forward mode (`Implicit`).
    """
    lr = check_lr(lr)
    tasks, rows = _start(model, recipe, episodes, loss, grads, engine)
    before, after = tasks.losses({}), torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    check_nonzero(before, tasks.names)
    for i, row in enumerate(rows):
        for j in range(len(tasks)):
            after[i, j] = float(_linear_loss(tasks, j, row, lr))
    return Relatedness(1 - after / before, tasks.names, "linearized affinity")


def _linear_loss(tasks: TaskFunctions, task: int, row: Params, lr: float) -> Tensor:
    """The loss of the output `f - lr J g`."""
    output, tangent = output_derivative(tasks, task, row)

    def step(value: Any, slope: Any) -> Any:
        return value - lr * slope if isinstance(value, Tensor) and value.is_floating_point() else value

    with torch.no_grad():
        return tasks.problems[task].loss(tree_map(step, output, tangent), tasks.data[task][1][1])


def _start(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    grads: Gradients | None,
    engine: Engine | None,
) -> tuple[TaskFunctions, list[Params]]:
    """The functions of at least two tasks, and their gradients."""
    episodes = check_analysis(model, recipe, episodes, loss, engine, least=2)
    tasks = TaskFunctions.of(model, recipe, episodes, loss)
    grads = gradients(model, recipe, episodes, loss, engine=engine) if grads is None else grads
    return tasks, task_directions(grads, tasks)


def task_directions(grads: Gradients, tasks: TaskFunctions) -> list[Params]:
    """The gradient of every task as a direction in parameter space.

    Raises:
        ValueError: the gradients are those of other tasks, are sketched, or are gradients at features.
    """
    if grads.tasks != tasks.names:
        raise ValueError(
            f"the gradients are those of {list(grads.tasks)[:10]}, the tasks are {list(tasks.names)[:10]};"
            " pass the gradients of the same episodes, or None."
        )
    rows = [grads.direction(task) for task in tasks.names]
    if features := [name for name in grads.rows if name not in tasks.params]:
        raise ValueError(
            f"the gradients are taken at the features {features[0]!r}, which are no directions in parameter"
            " space; use a recipe with layer=None."
        )
    return rows
