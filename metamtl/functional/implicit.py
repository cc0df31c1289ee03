"""The gradient through a minimum, by the implicit function theorem."""

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

    `minimum` is where `field(x, constants) + proximal * (x - start) = 0`, with `field` the gradient of some
    function of `x`, `H` its Jacobian there. With `v = (H + proximal I)^{-1} cotangent` the gradient with
    respect to `start` is `proximal * v`, with respect to the constants `-(d field / d constants)^T v`.

    Args:
        field: a pure function; what it closes over gets no gradient.
        minimum: how it was found does not matter, and is not differentiated.
        solver: `"cg"`, conjugate gradients, for a positive definite `H + proximal I`; `"neumann"`, the
            series `sum_j (I - rate (H + proximal I))^j rate`, which diverges where an eigenvalue of
            `rate (H + proximal I)` is not between 0 and 2.
        solver_steps: products with `H` that the solver may take.

    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> (x,) = implicit(lambda x, c: (4 * x[0],), (torch.tensor([1.0]),), (theta,), (), proximal=2.0,
    ...                 solver="cg", solver_steps=1, rate=0.1)
    >>> torch.autograd.grad(x, theta)  # x = 2 / (4 + 2) theta
    (tensor([0.3333]),)
    """
    cuda = next((tensor.device for tensor in start if tensor.is_cuda), None)

    def solve(product: Product, right: Tensors) -> Tensors:
        def whole(v: Tensors) -> Tensors:
            return _plus(product(v), proximal, v)

        if solver == "cg":
            return conjugate_gradients(whole, right, solver_steps)
        return neumann(whole, right, solver_steps, rate)

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
        found: list[Tensor | None] = [None] * len(constants)

        def of_constants(*values: Tensor) -> Tensors:
            full = list(constants)
            for i, value in zip(needed, values):
                full[i] = value
            return field(minimum, tuple(full))

        with ctx.random_state.restored():
            # Reverse over reverse: forward over reverse fails under vmap for some losses.
            product = vjp_function(lambda *x: field(x, constants), minimum)
            v = ctx.solve(product, tuple(cotangents))
        if needed:
            with ctx.random_state.restored():
                products = vjp(of_constants, tuple(constants[i] for i in needed), v)
            for i, gradient in zip(needed, products):
                found[i] = -gradient
        to_start = tuple(ctx.proximal * piece for piece in v)
        return None, None, None, None, None, *(None for _ in minimum), *to_start, *found


def conjugate_gradients(product: Product, right: Tensors, steps: int) -> Tensors:
    """`x` with `product(x) = right`, after so many steps from 0; no branch depends on a value."""
    x = tuple(torch.zeros_like(piece) for piece in right)
    residual = along = right
    size = _dot(residual, residual)
    for _ in range(steps):
        image = product(along)
        length = _ratio(size, _dot(along, image))
        x, residual = _plus(x, length, along), _plus(residual, -length, image)
        size, before = _dot(residual, residual), size
        along = _plus(residual, _ratio(size, before), along)
    return x


def neumann(product: Product, right: Tensors, steps: int, rate: float) -> Tensors:
    """`sum_{j <= steps} (I - rate product)^j rate right`: gradient steps towards `product(x) = right`."""
    x = tuple(rate * piece for piece in right)
    for _ in range(steps):
        x = _plus(_plus(x, rate, right), -rate, product(x))
    return x


def _plus(a: Tensors, factor: float | Tensor, b: Tensors) -> Tensors:
    return tuple(one + factor * other for one, other in zip(a, b))


def _dot(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(one * other).sum() for one, other in zip(a, b)]).sum()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """0 where `b` is: nothing is left to solve."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))
