"""The K-step loop, and the backward pass through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .differentiate import vjp
from .random_state import RandomState, foreign_state

Carry = Any  # the values that a step changes: tensors in any nesting of tuples and dicts
Context = Any  # the values that steps only read: tensors, None and constants in any nesting
Step = Callable[[Carry, Context, int], Carry]
Tensors = tuple[Tensor, ...]


def carries(step: Step, carry: Carry, context: Context, steps: Iterable[int]) -> Iterator[Carry]:
    """Yield the carry after each step, `carry = step(carry, context, k)` for k in `steps`."""
    for k in steps:
        carry = step(carry, context, k)
        yield carry


def last_carry(step: Step, carry: Carry, context: Context, steps: Iterable[int]) -> Carry:
    """The carry after all steps."""
    result = carry
    for next_carry in carries(step, carry, context, steps):
        result = next_carry
    return result


def scan(
    step: Step, carry: Carry, context: Context, steps: range, *, checkpoint_every: int | None = None
) -> Carry:
    """The carry after all `steps`, differentiable with respect to `carry` and `context`.

    Args:
        step: a pure function; variables of its closure receive no gradient.
        carry: the values that the steps change; their shapes and dtypes must not change.
        context: the values that the steps only read.
        steps: the indices of the steps.
        checkpoint_every: if None, autograd records all steps. Otherwise, only the carry of every
            `checkpoint_every`-th step is stored, and the backward pass recomputes the steps between them
            with the same random numbers and autocast settings: gradient checkpointing, Chen et al. 2016,
            https://arxiv.org/abs/1604.06174.

    >>> x, a = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    >>> y = scan(lambda x, a, k: a * x, x, a, range(3), checkpoint_every=1)
    >>> torch.autograd.grad(y, (x, a))
    (tensor(8.), tensor(36.))
    """
    if checkpoint_every is None or not steps:
        return last_carry(step, carry, context, steps)
    state, spec = tree_flatten(carry)
    constants, put = opened(context)

    def flat_step(state: Tensors, constants: Tensors, k: int) -> Tensors:
        return tuple(tree_leaves(step(tree_unflatten(list(state), spec), put(constants), k)))

    outputs = _Checkpointed.apply(
        _Segments(flat_step, steps, checkpoint_every), len(state), *state, *constants
    )
    return tree_unflatten(list(outputs[: len(state)]), spec)


def transpose(
    step_vjp: Callable[[Carry, Context, int, Carry], tuple[Carry, Context]],
    starts: Sequence[Carry],
    context: Context,
    steps: Sequence[int],
    cotangent: Carry,
    total: Context | None = None,
) -> tuple[Carry, Context | None]:
    """The cotangents of the first carry and of `context`, computed from the cotangent of the last carry.

    Args:
        step_vjp: `(carry, context, k, cotangent) -> (cotangent of carry, cotangent of context)`.
        starts: the carry before each step.
        steps: the indices of the steps, first to last.
        total: a cotangent of `context` to which the result is added.
    """
    empty = False
    for carry, k in zip(reversed(starts), reversed(steps)):
        cotangent, summand = step_vjp(carry, context, k, cotangent)
        if total is None:
            total, empty = summand, not tree_leaves(summand)
        elif not empty:
            total = tree_map(_add, total, summand)
    return cotangent, total


def _add(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


class _Segments:
    """The segments of the steps, and the random state at the beginning of each segment."""

    def __init__(self, step: Step, steps: range, length: int) -> None:
        self.step = step
        self.segments = [steps[first : first + length] for first in range(0, len(steps), length)]
        self.states: list[RandomState] = []


class _Checkpointed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(course: _Segments, split: int, *inputs: Tensor) -> Tensors:
        step, segments, states = course.step, course.segments, course.states
        state, constants = inputs[:split], inputs[split:]
        cuda = next((tensor.device for tensor in state if tensor.is_cuda), None)
        stored: Tensors = ()
        initial, draws = foreign_state(), False  # whether steps draw from Python's or numpy's generator
        for index, segment in enumerate(segments):
            states.append(RandomState(cuda, initial if index == 0 else foreign_state() if draws else None))
            if index == 1:
                # One block for all stored carries: separate allocations between the temporary tensors of
                # the steps would fragment the heap, which costs more memory than the carries themselves.
                stored = tuple(tensor.new_empty(len(segments) - 1, *tensor.shape) for tensor in state)
            for block, tensor in zip(stored, state):
                block[index - 1] = tensor
            state = last_carry(step, state, constants, segment)
            if index == 0:
                draws = foreign_state() != initial
        if not draws and foreign_state() != initial:
            raise RuntimeError(
                "a later inner step draws numbers from Python's or numpy's global generator but the first"
                " does not, so checkpointing cannot repeat it; draw from torch, or use"
                " differentiation='exact'."
            )
        # Clone tensors that no step has changed, because autograd cannot save an input that is returned.
        return *(end.clone() if end is start else end for start, end in zip(inputs, state)), *stored

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.course, ctx.split, *tensors = inputs
        stored = output[ctx.split :]
        ctx.mark_non_differentiable(*stored)
        ctx.set_materialize_grads(False)  # otherwise, zeros would be allocated for all stored carries
        ctx.save_for_backward(*tensors, *stored)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        course, split, stop = ctx.course, ctx.split, len(ctx.needs_input_grad) - 2
        step, tensors = course.step, ctx.saved_tensors
        first, constants, stored = tensors[:split], tensors[split:stop], tensors[stop:]
        needed = [i for i, need in enumerate(ctx.needs_input_grad[2 + split :]) if need]

        def all_constants(learned: Tensors) -> Tensors:
            values = list(constants)
            for i, value in zip(needed, learned):
                values[i] = value
            return tuple(values)

        cotangent: Any = tuple(torch.zeros_like(t) if c is None else c for t, c in zip(first, cotangents))
        learned, total = tuple(constants[i] for i in needed), None
        for index, segment in reversed(list(enumerate(course.segments))):
            start = first if index == 0 else tuple(block[index - 1] for block in stored)
            random_states = [course.states[index]]

            def recording_step(
                state: Tensors, learned: Tensors, k: int, states: list[Any] = random_states
            ) -> Any:
                state = step(state, all_constants(learned), k)
                states.append(states[0].current())
                return state

            with course.states[index].restored():
                starts = [start, *carries(recording_step, start, learned, segment[:-1])]

            def step_vjp(
                state: Any, learned: Any, k: int, cotangent: Any, states: list[Any] = random_states
            ) -> Any:
                with states.pop().restored():
                    return vjp(lambda s, c: step(s, all_constants(c), k), (state, learned), cotangent)

            cotangent, total = transpose(step_vjp, starts, learned, segment, cotangent, total)
        products: list[Tensor | None] = [None] * len(constants)
        for i, product in zip(needed, total or ()):
            products[i] = product
        return None, None, *cotangent, *products


def opened(tree: Any) -> tuple[Tensors, Callable[[Sequence[Tensor]], Any]]:
    """The tensors of a tree, and a function that returns the tree with other tensors."""
    leaves, spec = tree_flatten(tree)
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def put(tensors: Sequence[Tensor]) -> Any:
        values = list(leaves)
        for i, tensor in zip(positions, tensors):
            values[i] = tensor
        return tree_unflatten(values, spec)

    return tuple(leaves[i] for i in positions), put
