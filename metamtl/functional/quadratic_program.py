"""A quadratic program with upper bounds and equality constraints, and the derivative of its solution."""

from __future__ import annotations

import torch
from torch import Tensor


def quadratic_program(
    hessian: Tensor, linear: Tensor, upper: Tensor, equality: Tensor, start: Tensor, steps: int
) -> Tensor:
    """The minimum of `1/2 x^T H x - c^T x` subject to `x <= upper` and `A x = 0`.

    A primal-dual interior-point method with predictor and corrector (Mehrotra 1992,
    https://doi.org/10.1137/0802028). The number of steps is fixed and no branch depends on tensor values,
    so vmap and torch.compile support it. The result is differentiable once with respect to `hessian` and
    `linear`, by the implicit function theorem; bounds and equalities are constants.

    Args:
        hessian: `H`, symmetric and positive semidefinite, `[n, n]`.
        linear: `c`, `[n]`.
        upper: the bounds, `[n]`.
        equality: `A`, `[m, n]`, with linearly independent rows.
        start: a point below all bounds with `A x = 0`.
        steps: the number of steps; a step that is no longer needed changes nothing.

    >>> one = torch.ones(1, 2, dtype=torch.float64)
    >>> upper, start = torch.tensor([[0.1, 9.0], [0.0, 0.0]], dtype=torch.float64)
    >>> target = torch.tensor([2.0, 0.0], dtype=torch.float64)
    >>> solution = quadratic_program(torch.eye(2).double(), target, upper, one, start, 20)
    >>> solution.round(decimals=9)
    tensor([ 0.1000, -0.1000], dtype=torch.float64)
    """
    with torch.no_grad():
        x, nu, z, barrier = _interior_point(
            hessian.detach(), linear.detach(), upper.detach(), equality, start.detach(), steps
        )
    # One Newton step from the constant solution: zero up to rounding, with the derivative of the solution.
    residual = torch.cat([hessian @ x - linear + z + equality.T @ nu, equality @ x])
    system = _system(hessian.detach(), barrier, equality)
    return x - torch.linalg.solve(system, residual)[: len(x)]


def _interior_point(
    hessian: Tensor, linear: Tensor, upper: Tensor, equality: Tensor, x: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The solution, the multipliers of the equalities and of the bounds, and `multiplier / slack`."""
    slack = upper - x
    z, nu = torch.full_like(x, 1.0), x.new_zeros(len(equality))
    smallest = torch.finfo(x.dtype).eps
    for _ in range(steps):
        gap = (slack * z).mean()
        dual = hessian @ x - linear + z + equality.T @ nu
        primal = equality @ x
        system = _system(hessian, z / slack, equality)
        dx, dnu, ds, dz = _direction(system, dual, primal, slack, z, -slack * z)
        size = _size(slack, ds).minimum(_size(z, dz))
        target = ((slack + size * ds) * (z + size * dz)).mean()
        center = (target / gap) ** 3 * gap
        dx, dnu, ds, dz = _direction(system, dual, primal, slack, z, center - slack * z - ds * dz)
        size = 0.995 * _size(slack, ds).minimum(_size(z, dz))
        size = torch.where(gap > smallest, size, 0.0)  # converged
        dx, dnu, ds, dz = (torch.where(gap > smallest, d, 0.0) for d in (dx, dnu, ds, dz))
        x, nu, slack, z = x + size * dx, nu + size * dnu, slack + size * ds, z + size * dz
    return x, nu, z, z / slack


def _system(hessian: Tensor, barrier: Tensor, equality: Tensor) -> Tensor:
    zeros = equality.new_zeros(len(equality), len(equality))
    upper = torch.cat([hessian + torch.diag_embed(barrier), equality.T], 1)
    return torch.cat([upper, torch.cat([equality, zeros], 1)])


def _direction(
    system: Tensor, dual: Tensor, primal: Tensor, slack: Tensor, z: Tensor, product: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    right = torch.cat([-dual - product / slack, -primal])
    solution = torch.linalg.solve(system, right)
    dx, dnu = solution[: len(slack)], solution[len(slack) :]
    return dx, dnu, -dx, (product + z * dx) / slack


def _size(value: Tensor, change: Tensor) -> Tensor:
    """The largest step of at most 1 that keeps `value` at least 0."""
    limits = torch.where(change < 0, -value / torch.where(change < 0, change, -1.0), 1.0)
    return limits.min().clamp(max=1.0)
