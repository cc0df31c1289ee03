"""Differentiation through a minimum with the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .differentiate import vjp, vjp_function
from .random_state import RandomState
from .scan import Tensors

Field = Callable[[Tensors, Tensors], Tensors]
Product = Callable[[Tensors], Tensors]
Solver = Literal["cg", "neumann"]


def implicit(
    field: Field,
    minimum: Tensors,
    start: Tensors,
    constants: Tensors,
    *,
    proximal: float,
    solver: Solver,
    solver_steps: int,
    rate: float,
) -> Tensors:
    """`minimum`, differentiable with respect to `start` and `constants`; memory is that of one gradient.

    `minimum` is a solution of `field(x, constants) + proximal * (x - start) = 0`. Here `field` is the
    gradient of some function of `x`, and `H` is its Jacobian at `minimum`. With
    `v = (H + proximal I)^{-1} cotangent`, the gradient with respect to `start` is `proximal * v`, and the
    gradient with respect to the constants is `-(d field / d constants)^T v`.

    Args:
        field: a pure function; variables of its closure receive no gradient.
        minimum: the solution. The computation that found it is not differentiated.
        solver: `"cg"`, conjugate gradients, for a positive definite `H + proximal I`; `"neumann"`, the
            series `sum_j (I - rate (H + proximal I))^j rate`, which diverges if an eigenvalue of
            `rate (H + proximal I)` is not between 0 and 2.
        solver_steps: the number of products with `H` that the solver computes.

    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> (x,) = implicit(lambda x, c: (4 * x[0],), (torch.tensor([1.0]),), (theta,), (), proximal=2.0,
    ...                 solver="cg", solver_steps=1, rate=0.1)
    >>> torch.autograd.grad(x, theta)  # x = 2 / (4 + 2) theta
    (tensor([0.3333]),)
    """
    cuda = next((tensor.device for tensor in start if tensor.is_cuda), None)

    def solve(product: Product, right: Tensors) -> Tensors:
        def proximal_product(v: Tensors) -> Tensors:
            return _plus(product(v), proximal, v)

        if solver == "cg":
            return conjugate_gradients(proximal_product, right, solver_steps)
        return neumann(proximal_product, right, solver_steps, rate)

    return _Implicit.apply(
        field,
        solve,
        proximal,
        RandomState(cuda, None),
        len(start),
        *(x.detach() for x in minimum),
        *start,
        *constants,
    )


class _Implicit(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        field: Field, solve: Any, proximal: float, random_state: RandomState, n: int, *inputs: Tensor
    ) -> Tensors:
        return tuple(x.clone() for x in inputs[:n])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.field, ctx.solve, ctx.proximal, ctx.random_state, ctx.n, *tensors = inputs
        ctx.save_for_backward(*tensors[: ctx.n], *tensors[2 * ctx.n :])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        field, n = ctx.field, ctx.n
        minimum, constants = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        needed = [i for i, need in enumerate(ctx.needs_input_grad[5 + 2 * n :]) if need]
        constant_grads: list[Tensor | None] = [None] * len(constants)

        def field_of_constants(*values: Tensor) -> Tensors:
            all_constants = list(constants)
            for i, value in zip(needed, values):
                all_constants[i] = value
            return field(minimum, tuple(all_constants))

        with ctx.random_state.restored():
            # Reverse over reverse: forward over reverse fails under vmap for some losses.
            product = vjp_function(lambda *x: field(x, constants), minimum)
            v = ctx.solve(product, tuple(cotangents))
        if needed:
            with ctx.random_state.restored():
                products = vjp(field_of_constants, tuple(constants[i] for i in needed), v)
            for i, gradient in zip(needed, products):
                constant_grads[i] = -gradient
        start_grads = tuple(ctx.proximal * tensor for tensor in v)
        return None, None, None, None, None, *(None for _ in minimum), *start_grads, *constant_grads


def conjugate_gradients(product: Product, right: Tensors, steps: int) -> Tensors:
    """Solve `product(x) = right` with conjugate gradients from 0; no branch depends on tensor values."""
    x = tuple(torch.zeros_like(tensor) for tensor in right)
    residual = direction = right
    size = _dot(residual, residual)
    for _ in range(steps):
        image = product(direction)
        length = _ratio(size, _dot(direction, image))
        x, residual = _plus(x, length, direction), _plus(residual, -length, image)
        size, old_size = _dot(residual, residual), size
        direction = _plus(residual, _ratio(size, old_size), direction)
    return x


def neumann(product: Product, right: Tensors, steps: int, rate: float) -> Tensors:
    """`sum_{j <= steps} (I - rate product)^j rate right`: gradient steps toward `product(x) = right`."""
    x = tuple(rate * tensor for tensor in right)
    for _ in range(steps):
        x = _plus(_plus(x, rate, right), -rate, product(x))
    return x


def _plus(a: Tensors, factor: float | Tensor, b: Tensors) -> Tensors:
    return tuple(x + factor * y for x, y in zip(a, b))


def _dot(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b)]).sum()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`; 0 where `b` is 0, because the residual is 0 there."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))
