"""One vmapped step and its vector-Jacobian product, compiled once and used for every step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from ..adapters import Gradient
from ..functional import Params, forward, named_by, twice_differentiable
from ..objectives import Adaptation
from .base import Engine, Function, Rows, at
from .task import TaskFunction
from .vmap import Vmap


class Parts(NamedTuple):
    """The compiled pieces for one model, recipe and shape."""

    step: Callable[..., Params]
    pull: Callable[..., tuple[Params, Params]]
    end: Callable[..., tuple[tuple[Params, Params, Params], Tensor]]
    names: list[str]
    gradient_evaluations: int
    held: TaskFunction  # what the key identifies by id lives as long as the key


class Compiled(Engine):
    """`Vmap` with its parts compiled by `torch.compile`, for adapters that take gradient steps.

    The inner loop is `K` calls of one compiled step; the outer gradient is the recursion
    `v_k = v_{k+1} - lr * H_k v_{k+1}`, `K` calls of the step's compiled vector-Jacobian product. So compile
    time does not grow with K, and of every step only its parameters are stored: memory is that of
    `order="recompute"`, whatever the order. Other adapters, and those with parameters of their own, run
    under `Vmap` as they are.

    Parts are compiled once for each model, recipe and shape; `compilations` counts them. Where compiling
    fails, there is one warning and `Vmap` takes over.
    """

    def __init__(self) -> None:
        self.compilations = 0
        self._fallback = Vmap()
        self._parts: WeakKeyDictionary[nn.Module, dict[Any, Parts | None]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return "Compiled()"

    def check(self, model: nn.Module) -> None:
        self._fallback.check(model)

    def map(self, function: Callable[[Any], Any], data: Any) -> Any:
        return self._fallback.map(function, data)

    def rows(self, function: Function, shared: Params, own: Params, data: Any) -> Rows:
        if own or not isinstance(function, TaskFunction) or not isinstance(function.adapter, Gradient):
            return self._fallback.rows(function, shared, own, data)
        parts = self._compiled(function, shared, data)
        if parts is None:
            return self._fallback.rows(function, shared, own, data)
        function.gradient_evaluations = parts.gradient_evaluations
        with torch.no_grad(), twice_differentiable():
            return _recursion(function, parts, shared, data)

    def _compiled(self, function: TaskFunction, shared: Params, data: Any) -> Parts | None:
        """The parts for this work, compiled now where they are not yet; None where Vmap does it."""
        tensors = [leaf for leaf in tree_leaves((shared, data)) if isinstance(leaf, Tensor)]
        shapes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        modes = tuple(module.training for module in function.model.modules())
        key = (function.identity, shapes, modes)
        known = self._parts.setdefault(function.model, {})
        if key not in known:
            known[key] = self._compile(function, shared, data)
        return known[key]

    def _compile(self, function: TaskFunction, shared: Params, data: Any) -> Parts | None:
        assert isinstance(function.adapter, Gradient)
        # One task without compiling first: bad input is told in its own words.
        leaves = {name: param.detach().requires_grad_() for name, param in shared.items()}
        before = torch.get_rng_state()
        with torch.enable_grad():
            function(leaves, {}, at(data, 0))
        if not torch.equal(before, torch.get_rng_state()):
            return None  # a compiled step would not draw the same random numbers when it is computed again
        parts = _parts(function, data)
        try:
            with torch.no_grad(), twice_differentiable():
                _recursion(function, parts, shared, data)
        except Exception as error:  # whatever the compiler could not do, Vmap can
            reason = (str(error).splitlines() or [""])[0]
            warnings.warn(
                f"compiling failed ({type(error).__name__}: {reason}); this work runs under Vmap,"
                " with the same results.",
                stacklevel=2,
            )
            return None
        self.compilations += 1
        return parts


def _parts(function: TaskFunction, data: Any) -> Parts:
    """The functions of one task, vmapped over tasks and handed to the compiler."""
    model, loss, objective = function.model, function.loss, function.objective
    assert isinstance(function.adapter, Gradient)

    def step(state: Params, others: Params, frozen: Params, support: Any, lr: Tensor) -> Params:
        def support_loss(state: Params) -> Tensor:
            return loss(forward(model, {**frozen, **others, **state}, support[0]), support[1])

        gradients = grad(support_loss)(state)
        return {name: state[name] - lr * gradients[name] for name in state}

    def pull(
        state: Params, others: Params, frozen: Params, support: Any, lr: Tensor, cotangent: Params
    ) -> Any:
        _, back, *_ = vjp(lambda state, others: step(state, others, frozen, support, lr), state, others)
        return back(cotangent)

    def end(start: Params, state: Params, others: Params, frozen: Params, support: Any, query: Any) -> Any:
        def measure(params: Params, batch: Any) -> Tensor:
            return loss(forward(model, params, batch[0]), batch[1])

        def outer(start: Params, state: Params, others: Params) -> tuple[Tensor, Tensor]:
            task = Adaptation(start, {**frozen, **others, **state}, support, query, measure)
            return objective(task), task.query_loss

        return grad(outer, argnums=(0, 1, 2), has_aux=True)(start, state, others)

    def over_tasks(part: Callable[..., Any], *axes: Any) -> Any:
        def batched(*args: Any) -> Any:
            return vmap(part, in_dims=axes)(*args)

        # The compiler counts recompilations by code object, which these functions would share.
        code = batched.__code__.replace(co_name=f"batched_{part.__name__}")
        own = FunctionType(code, batched.__globals__, code.co_name, None, batched.__closure__)
        return torch.compile(own, dynamic=False, fullgraph=True)

    support, query, _ = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, data)
    return Parts(
        step=over_tasks(step, 0, None, None, support, None),
        pull=over_tasks(pull, 0, None, None, support, None, 0),
        end=over_tasks(end, None, 0, None, None, support, query),
        names=named_by(model, function.adapter.adapts),
        gradient_evaluations=function.gradient_evaluations,
        held=function,
    )


def _recursion(function: TaskFunction, parts: Parts, shared: Params, data: Any) -> Rows:
    """K steps there, and K vector-Jacobian products back."""
    adapter, frozen = function.adapter, function.constants
    assert isinstance(adapter, Gradient)
    support, query, _ = data
    shared = {name: param.detach() for name, param in shared.items()}
    num_tasks = tree_leaves(query)[0].shape[0]
    others = {name: param for name, param in shared.items() if name not in parts.names}
    state = {name: shared[name].expand(num_tasks, *shared[name].shape).contiguous() for name in parts.names}
    rates = [torch.tensor(lr, dtype=next(iter(shared.values())).dtype) for lr in adapter.lr]
    stored = []
    for rate in rates:
        stored.append(state)
        state = parts.step(state, others, frozen, support, rate)
    (at_start, cotangent, fixed), losses = parts.end(shared, state, others, frozen, support, query)
    for k in reversed(range(adapter.steps)):
        if adapter.differentiates(k):
            cotangent, more = parts.pull(stored[k], others, frozen, support, rates[k], cotangent)
            fixed = {name: fixed[name] + more[name] for name in fixed}
    rows = {**fixed, **cotangent}
    return Rows(losses, {name: at_start[name] + rows[name] for name in shared}, {}, {})
