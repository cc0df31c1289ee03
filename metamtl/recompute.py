"""Differentiating a chain of steps without keeping its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors, Tensors], Tensors]


def recomputed(steps: Sequence[Step], state: Tensors, constants: Tensors, segment: int = 1) -> Tensors:
    """`state` after `state = step(state, constants)` for each step, differentiable at flat memory.

    Only `constants` and every `segment`-th state are stored. The backward pass runs one segment of steps
    again, with the random numbers and under the autocast of the first time, and goes back one step at a
    time by its vector-Jacobian product; more than one step's graph never exists. Works under plain
    autograd and under `torch.func` transforms.

    Args:
        steps: pure functions; what they close over gets no gradient.
        state: what the steps change; its shapes and dtypes stay.
        constants: what they only read.
        segment: how many steps lie between two stored states.

    >>> x, a = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    >>> (y,) = recomputed([lambda state, constants: (constants[0] * state[0],)] * 3, (x,), (a,))
    >>> torch.autograd.grad(y, (x, a))
    (tensor(8.), tensor(36.))
    """
    if not steps:
        return state
    return _Recomputed.apply(_Course(steps, segment), len(state), *state, *constants)[: len(state)]


class _Course:
    """The steps by segments, and the moment that each segment began at."""

    def __init__(self, steps: Sequence[Step], length: int) -> None:
        self.segments = [tuple(steps[first : first + length]) for first in range(0, len(steps), length)]
        self.moments: list[Moment] = []


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(course: _Course, split: int, *inputs: Tensor) -> Tensors:
        state, constants = inputs[:split], inputs[split:]
        cuda = next((tensor.device for tensor in state if tensor.is_cuda), None)
        stored: Tensors = ()
        for index, segment in enumerate(course.segments):
            course.moments.append(Moment(cuda))
            if index == 1:
                # One block for all the states that outlive their step: single ones, left between a
                # step's passing tensors, tear holes in the heap that cost more than all they hold.
                stored = tuple(
                    tensor.new_empty(len(course.segments) - 1, *tensor.shape) for tensor in state
                )
            for block, tensor in zip(stored, state):
                block[index - 1] = tensor
            for step in segment:
                state = step(state, constants)
        return *state, *stored

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.course, ctx.split, *tensors = inputs
        stored = output[ctx.split :]
        ctx.mark_non_differentiable(*stored)
        ctx.set_materialize_grads(False)  # or zeros would be made for all that is stored
        ctx.save_for_backward(*tensors, *stored)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        course, split, stop = ctx.course, ctx.split, len(ctx.needs_input_grad) - 2
        tensors = ctx.saved_tensors
        state, constants, stored = tensors[:split], tensors[split:stop], tensors[stop:]
        needed = [i for i, need in enumerate(ctx.needs_input_grad[2 + split :]) if need]
        totals: list[Tensor | None] = [None] * len(constants)
        back: Tensors = tuple(
            torch.zeros_like(tensor) if cotangent is None else cotangent
            for tensor, cotangent in zip(state, cotangents)
        )
        for index in reversed(range(len(course.segments))):
            begin = state if index == 0 else tuple(block[index - 1] for block in stored)
            begun = _again(course.segments[index], begin, constants, course.moments[index])
            for step, at, moment in reversed(begun):
                with moment.again():
                    back, found = _pull(step, at, constants, needed, back)
                for i, gradient in zip(needed, found):
                    total = totals[i]
                    totals[i] = gradient if total is None else total + gradient
        return None, None, *back, *totals


def _again(
    segment: tuple[Step, ...], state: Tensors, constants: Tensors, moment: Moment
) -> list[tuple[Step, Tensors, Moment]]:
    """Each step of a segment, with the state and the moment that it began with."""
    begun = [(segment[0], state, moment)]
    with moment.again():
        for step, following in pairwise(segment):
            state = step(state, constants)
            begun.append((following, state, Moment(moment.device)))
    return begun


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


class Moment:
    """What a computation depends on besides its arguments, to compute the same again.

    That is the state of the global generators, and autocast: a backward pass mostly runs outside of the
    context that its forward pass ran in.
    """

    def __init__(self, cuda: torch.device | None) -> None:
        self.device = cuda
        self.cpu_state = torch.get_rng_state()
        self.cuda_state = None if cuda is None else torch.cuda.get_rng_state(cuda)
        kinds = ("cpu",) if cuda is None else ("cpu", "cuda")
        self.autocast = [(k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers in the same precision within, and leave the generators as they were."""
        with ExitStack() as around:
            around.enter_context(
                torch.random.fork_rng(devices=[] if self.device is None else [self.device])
            )
            torch.set_rng_state(self.cpu_state)
            if self.device is not None and self.cuda_state is not None:
                torch.cuda.set_rng_state(self.cuda_state, self.device)
            for kind, enabled, dtype in self.autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    around.enter_context(torch.autocast(kind, dtype, enabled))
            yield
