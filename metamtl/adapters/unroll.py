"""Inner steps one after the other, and the ways back through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..episode import Batch
from ..functional import Params
from ..recompute import Step, Tensors, recomputed
from ..rules import Memory


class State(NamedTuple):
    """What an inner step changes: the adapted parameters by name, and what the rule carries."""

    params: Params
    memory: Memory


class Given(NamedTuple):
    """What the inner steps of one task only read.

    Attributes:
        others: the parameters that are not adapted.
        support: the support set.
        learned: the adapter's own parameters.
    """

    others: Params
    support: Batch
    learned: Params


Measure = Callable[[Params, Batch], Tensor]
# One inner step; nothing that needs a gradient comes to it but as an argument.
Advance = Callable[[State, Given, int], State]


def unrolled(advance: Advance, state: State, given: Given, steps: range) -> State:
    """By the graph of all the steps."""
    for k in steps:
        state = advance(state, given, k)
    return state


def recomputing(advance: Advance, state: State, given: Given, steps: range, segment: int) -> State:
    """By computing each step anew; only every `segment`-th state is stored."""
    constants, put = opened(given)
    moving, shape = tree_flatten(state)

    def one(k: int) -> Step:
        def step(moving: Tensors, constants: Tensors) -> Tensors:
            return tuple(tree_leaves(advance(tree_unflatten(moving, shape), put(constants), k)))

        return step

    end = recomputed([one(k) for k in steps], tuple(moving), constants, segment)
    return tree_unflatten(end, shape)


def opened(given: Given) -> tuple[Tensors, Callable[[Tensors], Given]]:
    """The tensors in it, and the way to put others in their place."""
    leaves, spec = tree_flatten(given)
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def put(tensors: Tensors) -> Any:
        values = list(leaves)
        for i, tensor in zip(at, tensors):
            values[i] = tensor
        return tree_unflatten(values, spec)

    return tuple(leaves[i] for i in at), put
