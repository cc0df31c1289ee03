"""Newton's method with a fixed number of steps, and the implicit derivative of its solution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Residual = Callable[[Tensor], tuple[Tensor, Tensor]]
Objective = Callable[[Tensor], Tensor]

SIZES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001, 0.0)  # of a damped step


def minimize(residual: Residual, objective: Objective, start: Tensor, steps: int) -> Tensor:
    """Damped Newton steps; every step has the size among `SIZES` with the lowest objective.

    No branch depends on tensor values, so vmap and torch.compile support it. It is not differentiable; see
    `implicit_step`.

    Args:
        residual: `x -> (r [n], J [n, n])`, the gradient of a convex function in some coordinates, and its
            Jacobian.
        objective: the convex function of several points, `[B, n] -> [B]`.
        start: the first `x`, `[n]`.
        steps: the number of steps.
    """
    x = start.detach()
    sizes = torch.tensor(SIZES, dtype=x.dtype, device="cpu").to(x.device)
    for _ in range(steps):
        value, jacobian = residual(x)
        direction = torch.linalg.solve(jacobian, value)
        values = objective(x - sizes[:, None] * direction)
        # Near the minimum, all values are equal up to rounding, and the full step is the best one.
        lowest = values.min() + 8 * torch.finfo(x.dtype).eps * values.min().abs()
        chosen = torch.where(values <= lowest, sizes, 0.0).max()
        x = x - chosen * direction
    return x


def implicit_step(residual: Residual, solution: Tensor) -> Tensor:
    """`solution`, differentiable with respect to the variables that `residual` reads.

    One Newton step from the constant `solution` with a constant Jacobian: `x - J^{-1} r(x, variables)`.
    Its derivative is `-J^{-1} dr / d variables`, that of the implicit function theorem; only the first
    derivative is that of the solution.
    """
    solution = solution.detach()
    value, jacobian = residual(solution)
    return solution - torch.linalg.solve(jacobian.detach(), value)
