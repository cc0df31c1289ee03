"""Indicators of generalization. None of them is a guarantee."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..estimate import Estimate
from ..functional import Params
from ..recipes import Recipe
from .arguments import Episodes, Losses
from .curvature import top
from .derivatives import mean_hessian_product
from .directions import check_direction, moved, norm
from .functions import TaskFunctions
from .result import Result, bars


@dataclass(frozen=True)
class Generalization(Result):
    """Indicators of generalization. They correlate with it in some experiments, and guarantee nothing.

    Attributes:
        train, test: the query losses after adaptation, over tasks.
        gap: `test.mean - train.mean`.
        gap_ci95: half width of its 95 % interval for independent tasks; NaN with a single task.
        parameter_norm: Euclidean norm of the trainable parameters.
        distance: of the parameters from `start`; None if it was not passed.
        largest: the largest eigenvalue in magnitude of the Hessian of the training objective.
        sharpness: the increase of the training objective after a step along its gradient.
        radius: the length of this step.
    """

    train: Estimate
    test: Estimate
    gap: float
    gap_ci95: float
    parameter_norm: float
    distance: float | None
    largest: float
    sharpness: float
    radius: float

    def scalars(self) -> dict[str, float]:
        names = ("gap", "parameter_norm", "distance", "largest", "sharpness")
        values = {name: getattr(self, name) for name in names}
        losses = {"train": self.train.mean, "test": self.test.mean}
        return losses | {name: value for name, value in values.items() if value is not None}

    def plot(self, ax: Any = None) -> Any:
        errors = [0.0 if math.isnan(e.ci95) else e.ci95 for e in (self.train, self.test)]
        return bars(ax, ("train", "test"), (self.train.mean, self.test.mean), "query loss", errors)


def generalization(
    model: nn.Module,
    recipe: Recipe,
    train: Episodes,
    test: Episodes,
    loss: Losses,
    *,
    start: Params | None = None,
    radius: float = 0.05,
    iterations: int = 10,
    seed: int = 0,
) -> Generalization:
    """Compute indicators of generalization from training tasks to test tasks.

    `sharpness = L(theta + radius g / |g|) - L(theta)`, the first-order estimate of Foret et al. 2021,
    https://arxiv.org/abs/2010.01412. Norms and sharpness depend on the parametrization of a model: compare
    them only between trainings of the same one. Jiang et al. 2020, https://arxiv.org/abs/1912.02178,
    compare such indicators.

    Args:
        model, recipe, loss: as in `gradients`; the inner loop must be differentiated exactly.
        train, test: episodes of tasks that were and were not trained on.
        start: the parameters at the start of training, by name.
        radius: of the step for `sharpness`.
        iterations, seed: of Lanczos.

    Raises:
        TypeError, ValueError: as `gradients`; `radius` is not above 0; the gradient is zero.
    """
    if not 0 < radius < math.inf:
        raise ValueError(f"radius={radius}: pass the length of the step, above 0.")
    tasks = TaskFunctions.of(model, recipe, train, loss, order=2)
    others = TaskFunctions.of(model, recipe, test, loss, order=2)
    losses, other_losses = Estimate.of(tasks.losses({})), Estimate.of(others.losses({}))
    gradient = tasks.mean_gradient(tasks.params)
    length = norm(gradient)
    if length == 0:
        raise ValueError(
            "the gradient of the training objective is zero, so it has no direction to step in."
        )
    operator = mean_hessian_product(tasks, tuple(tasks.params))
    size = sum(param.numel() for param in tasks.params.values())
    spectrum = top(tasks, lambda v: operator([v])[0], 1, max(1, min(iterations, size)), seed)
    distance = None
    if start is not None:
        start = check_direction(start, tasks.params, "start")
        distance = norm({name: tasks.params[name] - value for name, value in start.items()})
    raised = tasks.mean_objective(moved(tasks.params, gradient, radius / length))
    return Generalization(
        train=losses,
        test=other_losses,
        gap=other_losses.mean - losses.mean,
        gap_ci95=math.hypot(losses.ci95, other_losses.ci95),
        parameter_norm=norm(tasks.params),
        distance=distance,
        largest=abs(float(spectrum.values[0])),
        sharpness=raised - tasks.mean_objective({}),
        radius=radius,
    )
