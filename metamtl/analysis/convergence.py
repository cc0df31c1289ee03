"""Is a step what the derivatives promise, and is the learning rate one that the descent lemma allows?"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..functional import Params
from ..recipes import Recipe
from .arguments import Episodes, Losses, check_lr
from .curvature import top
from .derivatives import mean_hessian_product
from .directions import check_direction, inner, moved, norm
from .functions import TaskFunctions
from .result import Result, bars


@dataclass(frozen=True)
class Descent(Result):
    """One step of training, predicted and measured, for the mean objective L of the tasks.

    Attributes:
        before, after: L before and after the step.
        first: the decrease that the first-order Taylor expansion predicts, `-<g, d>` for the step d.
        second: that of the second-order expansion, `-<g, d> - 1/2 d^T H d`.
        gradient_norm, step_norm: `|g|` and `|d|`.
        curvature: along the step, `d^T H d / |d|^2`.
        smoothness: along the step, `|g(theta + d) - g(theta)| / |d|`.
        largest: the largest magnitude of an eigenvalue of the Hessian, by Lanczos (a lower bound).
        lr: the learning rate in use.
        max_lr: the learning rate below which the descent lemma guarantees a decrease in this direction.
    """

    before: float
    after: float
    first: float
    second: float
    gradient_norm: float
    step_norm: float
    curvature: float
    smoothness: float
    largest: float
    lr: float
    max_lr: float

    @property
    def actual(self) -> float:
        """The measured decrease of L; below 0, the step made it worse."""
        return self.before - self.after

    def scalars(self) -> dict[str, float]:
        names = ("first", "second", "gradient_norm", "curvature", "smoothness", "largest", "max_lr")
        return {"actual": self.actual, **{name: getattr(self, name) for name in names}}

    def plot(self, ax: Any = None) -> Any:
        names = ("measured", "first order", "second order")
        return bars(ax, names, (self.actual, self.first, self.second), "decrease of the objective")


def descent(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    lr: float,
    *,
    before: Params | None = None,
    iterations: int = 10,
    seed: int = 0,
) -> Descent:
    """Compare the decrease of the mean objective in one step with its Taylor expansions.

    Descent lemma: if the gradient is Lipschitz with constant `Lip`, then
    `L(theta + d) <= L(theta) + <g, d> + Lip / 2 |d|^2`. For `d = -lr g` that is a decrease if
    `lr < 2 / Lip`; for any step d that is proportional to the learning rate, if `lr` is less than
    `max_lr = -2 <g, d> / (Lip |d|^2) lr`. `Lip` is estimated by the larger of `smoothness` and `largest`,
    at this point: an indicator, not a bound over the whole space.

    Args:
        model, recipe, episodes, loss: as in `gradients`; the inner loop must be differentiated exactly.
        lr: the learning rate in use.
        before: the trainable parameters before a step of any optimizer, of which the model has the result:
            `{n: p.detach().clone() for n, p in model.named_parameters()}`. If None, the step is
            `-lr g` from the current parameters.
        iterations: of Lanczos, each one Hessian-vector product.
        seed: of Lanczos.

    Raises:
        TypeError, ValueError: as `gradients`; `lr` is not above 0; `before` is not the model's; there is no
            step, because the gradient is zero or the parameters are those before; the gradient of the
            recipe is first order, truncated or implicit.

    Warns:
        UserWarning: `lr` exceeds `max_lr`.

    >>> import torch
    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(4, torch.Generator().manual_seed(0))
    >>> step = descent(model, recipes.maml(steps=1, lr=0.01), episodes, family.loss, lr=1e-3)
    >>> step.actual > 0, abs(step.second / step.actual - 1) < 0.1
    (True, True)
    """
    lr = check_lr(lr)
    tasks = TaskFunctions.of(model, recipe, episodes, loss, order=2)
    current, start = tasks.params, tasks.params
    if before is not None:
        start = {**current, **check_direction(before, current, "before")}
        tasks = tasks.at(start)
    gradient = tasks.mean_gradient(start)
    step = {n: (-lr * g if before is None else current[n] - start[n]) for n, g in gradient.items()}
    step_norm, gradient_norm = norm(step), norm(gradient)
    if step_norm == 0:
        raise ValueError(
            "the gradient is zero, so there is no step; the parameters are at a stationary point."
            if before is None
            else "the parameters are those in `before`; copy them, with clone(), before optimizer.step()."
        )
    names = tuple(gradient)
    (product,) = mean_hessian_product(tasks, names)([step])
    quadratic, slope = inner(step, product), inner(gradient, step)
    after = moved(start, step, 1.0)
    shift = {name: g - gradient[name] for name, g in tasks.mean_gradient(after).items()}
    operator = mean_hessian_product(tasks, names)
    size = sum(param.numel() for param in start.values())
    spectrum = top(tasks, lambda v: operator([v])[0], 1, max(1, min(iterations, size)), seed)
    smoothness, largest = norm(shift) / step_norm, abs(float(spectrum.values[0]))
    lipschitz = max(smoothness, largest)
    allowed = -2 * slope / (lipschitz * step_norm**2) if lipschitz > 0 else math.inf
    result = Descent(
        before=tasks.mean_objective({}),
        after=tasks.mean_objective(after),
        first=-slope,
        second=-slope - quadratic / 2,
        gradient_norm=gradient_norm,
        step_norm=step_norm,
        curvature=quadratic / step_norm**2,
        smoothness=smoothness,
        largest=largest,
        lr=lr,
        max_lr=max(allowed * lr, 0.0),
    )
    if lr > result.max_lr:
        warnings.warn(
            f"lr={lr:g} exceeds {result.max_lr:.3g}, below which the descent lemma guarantees a decrease"
            f" (estimated Lipschitz constant of the gradient: {lipschitz:.3g}); the objective changed by"
            f" {-result.actual:.3g}. Lower the learning rate if this persists.",
            stacklevel=2,
        )
    return result
