"""Gradient steps as calls of one compiled step, and their outer gradient as calls of its transpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ..adapters import Gradient
from ..adapters.unroll import State
from ..episode import Batch
from ..functional import Params, forward, named_by
from ..objectives import Adaptation
from ..rules import Descent
from ..split import split
from .task import TaskFunction
from .traced import Tensors, Traced, tensors

GIVEN = (None, 0, 0)  # the task axes of what steps only read: others, own, support set


class Stepwise:
    """Rows of tasks under a `Gradient` adapter, from parts that are compiled once each.

    `phi_{k+1} = step_k(phi_k)` forward, `v_k = J_k^T v_{k+1}` back, J_k being the Jacobian of step k. Of
    every step only the state is stored, and no part grows with K.

    Args:
        function: the task function of the work.
        batched: whether data have a leading task axis; else they are of one task.
        around: entered while a part is traced.
    """

    def __init__(
        self,
        function: TaskFunction,
        batched: bool,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        assert isinstance(function.adapter, Gradient)
        self.adapter, self.batched, self.around = function.adapter, batched, around
        self.model, self.loss, self.objective = function.model, function.loss, function.objective
        self.constants = function.constants
        self.names = named_by(self.model, self.adapter.adapts)
        self.cut = split(self.model, self.names)
        self.plain = isinstance(self.adapter.rule, Descent)
        self.parts: dict[str, Traced] = {}

    def __call__(self, shared: Params, own: Params, data: Any) -> tuple[Params, Params, Tensor]:
        """The rows, those of the adapter's own parameters, and the losses."""
        support, query = Batch(*data[0]), Batch(*data[1])
        state, given, counts = self._start(shared, own, support)
        others = given[0]

        # Flat lists between the calls: to open and close trees would take as long as a small step.
        moving, shape = tree_flatten(state)
        constants = tensors(given)
        stored: list[Tensors] = []
        for k in counts:
            stored.append(moving)
            step = self._part("step", self._step, (0, GIVEN, None), state, given, k)
            moving = step.flat([*moving, *constants, k])
        end = (shared, tree_unflatten(moving, shape)[0], others, support, query)
        (rows, back, of_others), losses = self._part("end", self._end, (None, 0, None, 0, 0), *end)(*end)

        # Back through the steps; what others, own and features get from each is summed.
        cotangent = (back, tree_map(torch.zeros_like, state[1]))
        moving, shape = tree_flatten(cotangent)
        total: Tensors = []
        for k, before in zip(reversed(counts), reversed(stored)):
            constant = not self.adapter.differentiates(len(stored) - 1)
            stored.pop()
            if constant and self.plain and not own:
                continue  # the cotangent passes as it is
            name, transposed = (
                ("back", self._back) if not constant else ("back, constant", self._back_constant)
            )
            pull = self._part(name, transposed, (0, GIVEN, None, 0), state, given, k, cotangent)
            found = pull.flat([*before, *constants, k, *moving])
            moving, more = found[: len(moving)], found[len(moving) :]
            total = [a + b for a, b in zip(total, more)] if total else more
        back = tree_unflatten(moving, shape)[0]
        rows = {name: rows[name] + (back if name in back else of_others)[name] for name in shared}
        if not total:
            return rows, {}, losses
        learnt = self._learnt(given)
        of_others, of_own, of_features = tree_unflatten(total, tree_flatten(learnt)[1])
        if self.cut is not None:
            front = (others, support.x, of_features)
            from_front = self._part("front, back", self._front_back, (None, 0, 0), *front)(*front)
            of_others = tree_map(torch.add, of_others, from_front)
        return {**rows, **{name: rows[name] + more for name, more in of_others.items()}}, of_own, losses

    def path(self, shared: Params, own: Params, support: Batch) -> Iterator[Params]:
        """The adapted parameters of all tasks after 0, 1, ..., K steps, with no way back."""
        state, given, counts = self._start(shared, own, support)
        yield state[0]
        step = self._part("step, constant", self._step_constant, (0, GIVEN, None), state, given, counts[0])
        moving, shape = tree_flatten(state)
        constants = tensors(given)
        for k in counts:
            moving = step.flat([*moving, *constants, k])
            yield tree_unflatten(moving, shape)[0]

    def _start(self, shared: Params, own: Params, support: Batch) -> tuple[Any, Any, tuple[Tensor, ...]]:
        """The state before the first step, what steps only read, and their numbers."""
        others = {name: param for name, param in shared.items() if name not in self.names}
        seen = support
        if self.cut is not None:
            features = self._part("front", self._front, (None, 0), others, support.x)
            seen = Batch(features(others, support.x), support.y)
        given = (others, self._each(own, support), seen)
        counts = torch.arange(self.adapter.steps, device=next(iter(shared.values())).device).unbind()
        return self._begin(shared, support), given, counts

    def _begin(self, shared: Params, support: Batch) -> Any:
        """The state before the first step, of every task."""
        start = {name: shared[name] for name in self.names}
        return self._each(tuple(self.adapter.begin(self.model, start)), support)

    def _each(self, tree: Any, support: Batch) -> Any:
        """One copy of these tensors for every task."""
        if not self.batched:
            return tree
        num_tasks = tensors(support)[0].shape[0]
        return tree_map(lambda leaf: leaf.expand(num_tasks, *leaf.shape).contiguous(), tree)

    def _part(self, name: str, function: Callable[..., Any], axes: Any, *examples: Any) -> Traced:
        """The compiled `function` over tasks; compiled when first asked for."""
        if name not in self.parts:
            over_tasks = vmap(function, in_dims=axes) if self.batched else function
            with self.around():
                self.parts[name] = Traced(over_tasks, *examples)
        return self.parts[name]

    # The parts, of one task.

    def _measure(self, params: Params, batch: Batch) -> Tensor:
        return self.loss(forward(self.model, params, batch.x), batch.y)

    def _measure_from_cut(self, params: Params, batch: Batch) -> Tensor:
        assert self.cut is not None
        return self.loss(self.cut.rest(params, batch.x), batch.y)

    def _front(self, others: Params, x: Any) -> Any:
        assert self.cut is not None
        return self.cut.features({**self.constants, **others}, x)

    def _front_back(self, others: Params, x: Any, cotangent: Any) -> Params:
        return vjp(lambda others: self._front(others, x), others)[1](cotangent)[0]

    def _step(self, state: Any, given: Any, k: Tensor, constant: bool = False) -> Any:
        others, own, seen = given
        measure = self._measure if self.cut is None else self._measure_from_cut
        others = {**self.constants, **others}
        return tuple(self.adapter.step(measure, State(*state), others, seen, own, k, constant=constant))

    def _step_constant(self, state: Any, given: Any, k: Tensor) -> Any:
        return self._step(state, given, k, constant=True)

    def _learnt(self, given: Any) -> Any:
        """What of `given` has an outer gradient: others, own parameters, features at the cut."""
        others, own, seen = given
        return others, own, () if self.cut is None else seen.x

    def _back(self, state: Any, given: Any, k: Tensor, cotangent: Any, constant: bool = False) -> Any:
        def step(state: Any, learnt: Any) -> Any:
            others, own, features = learnt
            seen = given[2] if self.cut is None else given[2]._replace(x=features)
            return self._step(state, (others, own, seen), k, constant)

        return vjp(step, state, self._learnt(given))[1](cotangent)

    def _back_constant(self, state: Any, given: Any, k: Tensor, cotangent: Any) -> Any:
        return self._back(state, given, k, cotangent, constant=True)

    def _end(self, start: Params, adapted: Params, others: Params, support: Batch, query: Batch) -> Any:
        def outer(start: Params, adapted: Params, others: Params) -> tuple[Tensor, Tensor]:
            end = {**self.constants, **others, **adapted}
            task = Adaptation(start, end, support, query, self._measure)
            return self.objective(task), task.query_loss

        return grad(outer, argnums=(0, 1, 2), has_aux=True)(start, adapted, others)
