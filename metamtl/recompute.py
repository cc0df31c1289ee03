"""Differentiating a chain of steps without keeping its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors, Tensors], Tensors]


def recomputed(steps: Sequence[Step], state: Tensors, constants: Tensors) -> Tensors:
    """`state` after `state = step(state, constants)` for each step, differentiable at flat memory.

    Only `state` and `constants` are stored. The backward pass runs the steps again, with the random
    numbers of the first time, and goes back one step at a time by its vector-Jacobian product; more than
    one step's graph never exists. Works under plain autograd and under `torch.func` transforms.

    Args:
        steps: pure functions; what they close over gets no gradient.
        state: what the steps change.
        constants: what they only read.

    >>> x, a = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    >>> (y,) = recomputed([lambda state, constants: (constants[0] * state[0],)] * 3, (x,), (a,))
    >>> torch.autograd.grad(y, (x, a))
    (tensor(8.), tensor(36.))
    """
    cuda = next((tensor.device for tensor in state if tensor.is_cuda), None)
    random = Random(cuda)
    return _Recomputed.apply(tuple(steps), len(state), random, *state, *constants)


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(steps: tuple[Step, ...], split: int, random: Random, *inputs: Tensor) -> Tensors:
        state, constants = inputs[:split], inputs[split:]
        for step in steps:
            state = step(state, constants)
        return state

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.steps, ctx.split, ctx.random, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        state, constants = ctx.saved_tensors[: ctx.split], ctx.saved_tensors[ctx.split :]
        needed = [i for i, need in enumerate(ctx.needs_input_grad[3 + ctx.split :]) if need]
        totals: list[Tensor | None] = [None] * len(constants)
        stored = []
        with ctx.random.again():
            for step in ctx.steps[:-1]:
                stored.append((state, Random(ctx.random.device)))
                state = step(state, constants)
            stored.append((state, Random(ctx.random.device)))
        for step, (state, random) in zip(reversed(ctx.steps), reversed(stored)):
            with random.again():
                cotangents, found = _pull(step, state, constants, needed, cotangents)
            for i, gradient in zip(needed, found):
                total = totals[i]
                totals[i] = gradient if total is None else total + gradient
        return None, None, None, *cotangents, *totals


def _pull(
    step: Step, state: Tensors, constants: Tensors, needed: list[int], cotangents: Tensors
) -> tuple[Tensors, Tensors]:
    """The vector-Jacobian product of one step, for its state and for the constants that need one."""

    def of_needed(state: Tensors, values: Tensors) -> Tensors:
        full = list(constants)
        for i, value in zip(needed, values):
            full[i] = value
        return step(state, tuple(full))

    _, pull, *_ = vjp(of_needed, state, tuple(constants[i] for i in needed))
    return pull(tuple(cotangents))


class Random:
    """The state of the global generators at one moment, to start from again."""

    def __init__(self, cuda: torch.device | None) -> None:
        self.device = cuda
        self.cpu_state = torch.get_rng_state()
        self.cuda_state = None if cuda is None else torch.cuda.get_rng_state(cuda)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers within, and leave the generators as they were."""
        with torch.random.fork_rng(devices=[] if self.device is None else [self.device]):
            torch.set_rng_state(self.cpu_state)
            if self.device is not None and self.cuda_state is not None:
                torch.cuda.set_rng_state(self.cuda_state, self.device)
            yield
