"""Tasks as one compiled computation."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from ..adapters import Gradient
from ..functional import Params, plain_kernels, told_by_adapter, trainable
from .base import Engine, Function, Rows, at, count
from .evaluated import Evaluated, takes_steps
from .kept import NAME, kept
from .stepwise import Stepwise
from .task import Evaluation, TaskFunction
from .traced import Traced
from .vmap import Vmap

# (shared, own, data) -> rows, own rows, losses
Plan = Callable[[Params, Params, Any], tuple[Params, Params, Tensor]]
# In single precision a rectifier at its kink may fall to either side, which moves a gradient by 1e-2.
TOLERANCE = 0.1
WHOLE = 2  # inner steps up to which one compiled function is faster to make, and to run, than parts

log = logging.getLogger("metamtl")


class Compiled(Engine):
    """`Vmap`, traced and compiled by the compiler behind `torch.compile`.

    Up to two inner steps, and for adapters without any, all is one compiled function. From three on, the
    inner loop is K calls of one compiled step, and the outer gradient K calls of its transpose: compile
    time does not grow with K, and of every step only its parameters are stored, so that memory is that
    of `order="recompute"`, whatever the order.

    Compiled once for each model, recipe and shape; `compilations` counts them, and the logger `metamtl`
    tells each (level INFO). What a trace cannot hold runs under `Vmap` as it is: random numbers (dropout),
    `order="implicit"`, more than two steps in a `Chain`, modules that the adapter tells the inner step.
    Where compiling fails there is one warning, and `Vmap` takes over.

    Args:
        chunk_size: tasks at a time; all, where None. 1 compiles the function of a single task: its
            convolutions are plain ones then, faster than grouped ones where images are large.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        self.fallback = Vmap(chunk_size)
        self.chunk_size, self.batched = chunk_size, chunk_size != 1
        self.compilations = 0

    def __repr__(self) -> str:
        return f"Compiled(chunk_size={self.chunk_size})"

    def check(self, model: nn.Module) -> None:
        self.fallback.check(model)

    def map(self, function: Callable[[Any], Any], data: Any) -> Any:
        """As every engine's; the steps of an `Evaluation` are calls of one compiled step of first order."""
        if not isinstance(function, Evaluation) or not takes_steps(function.function):
            return self.fallback.map(function, data)
        num_tasks = count(data)
        size = min(self.chunk_size or num_tasks, num_tasks)
        found = []
        with torch.no_grad(), plain_kernels():
            for first in range(0, num_tasks, size):
                # The last chunk begins early, to be of the shape that is compiled.
                begin = min(first, num_tasks - size)
                chunk = at(data, slice(begin, begin + size) if self.batched else first)
                evaluated = self._evaluated(function.function, chunk)
                if evaluated is None:
                    return self.fallback.map(function, data)
                measured = evaluated(function, chunk)
                found.append(at(measured, slice(first - begin, None)) if self.batched else measured)
        return self._joined(found)

    def rows(self, function: Function, shared: Params, own: Params, data: Any) -> Rows:
        if not isinstance(function, TaskFunction):
            return self.fallback.rows(function, shared, own, data)
        shared = {name: param.detach() for name, param in shared.items()}
        own = {name: param.detach() for name, param in own.items()}
        found = []
        with torch.no_grad(), plain_kernels():
            for chunk in self._chunks(data):
                plan = self._plan(function, shared, own, chunk)
                if plan is None:
                    return self.fallback.rows(function, shared, own, data)
                found.append(plan(shared, own, chunk))
        rows, mine, losses = self._joined(found)
        return Rows(losses, rows, {name: gradient.mean(0) for name, gradient in mine.items()}, {})

    def _chunks(self, data: Any) -> Iterator[Any]:
        num_tasks = count(data)
        size = self.chunk_size or num_tasks
        for first in range(0, num_tasks, size):
            yield at(data, slice(first, first + size) if self.batched else first)

    def _joined(self, chunks: list[Any]) -> Any:
        """The results of all chunks, or of all tasks where they ran one by one."""
        if self.batched and len(chunks) == 1:
            return chunks[0]
        return tree_map(lambda *parts: (torch.cat if self.batched else torch.stack)(parts), *chunks)

    def _plan(self, function: TaskFunction, shared: Params, own: Params, data: Any) -> Plan | None:
        """The compiled function for this work, made now where it is not yet; None where Vmap does it."""
        key = ("rows", function.identity, shapes((shared, own, data)), settings(function.model))
        known = kept(function.model, self)
        if key not in known:
            known[key] = (self._compile(function, shared, own, data), function)
        plan, made_of = known[key]  # the function is kept because the key identifies its parts by id
        function.gradient_evaluations = made_of.gradient_evaluations
        return plan

    def _compile(self, function: TaskFunction, shared: Params, own: Params, data: Any) -> Plan | None:
        # One task without compiling first: bad input is told in its own words.
        batched = self.batched
        leaves = {name: param.detach().requires_grad_() for name, param in shared.items()}
        before = torch.get_rng_state()
        with torch.enable_grad():
            function(leaves, own, at(data, 0) if batched else data)
        drawn = not torch.equal(before, torch.get_rng_state())
        plan = None if drawn else _plan(function, batched)
        if plan is None:
            return None
        made = self._made(
            function,
            lambda: plan(shared, own, data),
            lambda: _Whole(function, batched).plain(shared, own, data),
        )
        return plan if made else None

    def _evaluated(self, function: TaskFunction, data: Any) -> Evaluated | None:
        """The compiled evaluation of this work, as `_plan` has its gradient."""
        model = function.model
        params = trainable(model), dict(function.adapter.named_parameters())
        key = ("map", function.identity, shapes((params, data)), settings(model))
        known = kept(model, self)
        if key not in known:
            known[key] = self._compile_evaluation(function, data), function
        return known[key][0]

    def _compile_evaluation(self, function: TaskFunction, data: Any) -> Evaluated | None:
        evaluated = Evaluated(function, self.batched)
        before = torch.get_rng_state()
        expected = evaluated.plain_first_step(data)
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            return None
        made = self._made(function, lambda: evaluated.first_step(data), lambda: expected)
        return evaluated if made else None

    def _made(self, function: TaskFunction, compile: Callable[[], Any], plain: Callable[[], Any]) -> bool:
        """Whether what has been compiled runs, and gives the numbers of `plain`."""
        try:
            found = compile()
        except Exception as error:  # whatever the compiler could not do, Vmap can
            lines = str(error).splitlines() or [""]
            self._give_up(f"compiling failed ({type(error).__name__}: {lines[0]})")
            return False
        # Compilers err, and then without a word: so the first result is held against the plain one.
        far = _difference(found, plain())
        if not far < TOLERANCE:
            self._give_up(f"compiled code gave other numbers (relative difference {far:.1e})")
            return False
        self.compilations += 1
        queries = [list(leaf.shape) for leaf in tree_leaves(function.data[1]) if isinstance(leaf, Tensor)]
        name = type(function.model).__name__
        log.info("%r compiled %s for queries of %s: compilation %d", self, name, queries, self.compilations)
        return True

    def _give_up(self, reason: str) -> None:
        warnings.warn(
            f"{reason}; this work runs under {self.fallback!r}, with the results of that.", stacklevel=2
        )


def _plan(function: TaskFunction, batched: bool) -> Plan | None:
    adapter = function.adapter
    if told_by_adapter(function.model) or getattr(adapter, "order", None) == "implicit":
        return None
    if isinstance(adapter, Gradient) and adapter.steps > WHOLE:
        return Stepwise(function, batched)
    if any(isinstance(part, Gradient) and part.steps > WHOLE for part in adapter.modules()):
        return None
    return _Whole(function, batched)


class _Whole:
    """All of a task in one compiled function."""

    def __init__(self, function: TaskFunction, batched: bool) -> None:
        self.function, self.batched = function, batched
        self.compiled: Traced | None = None

    def __call__(self, shared: Params, own: Params, data: Any) -> tuple[Params, Params, Tensor]:
        if self.compiled is None:
            self.compiled = Traced(self.plain, shared, own, data)
        return self.compiled(shared, own, data)

    def plain(self, shared: Params, own: Params, data: Any) -> tuple[Params, Params, Tensor]:
        """The same without compiling."""
        axes = (None, None, tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, data))
        run = vmap(self._one_task, in_dims=axes) if self.batched else self._one_task
        return run(shared, own, data)

    def _one_task(self, shared: Params, own: Params, data: Any) -> tuple[Params, Params, Tensor]:
        (rows, mine), loss = grad(self.function, argnums=(0, 1), has_aux=True)(shared, own, data)
        return rows, mine, loss


def _difference(found: Any, expected: Any) -> float:
    """The largest relative difference of two trees' tensors that hold a share of the whole."""
    pairs = [(a, b) for a, b in zip(tree_leaves(found), tree_leaves(expected)) if isinstance(b, Tensor)]
    whole = max((float(b.norm()) for _, b in pairs), default=0.0) or 1.0
    return max((float((a - b).norm()) / max(float(b.norm()), 1e-3 * whole) for a, b in pairs), default=0.0)


def shapes(trees: Any) -> Any:
    """What compiled code is made for."""
    return tuple(
        (tensor.shape, tensor.dtype, tensor.device) if isinstance(tensor, Tensor) else tensor is None
        for tensor in tree_leaves(trees)
    )


def settings(model: nn.Module) -> Any:
    """All that a trace of the model fixes: its modules' settings, and how torch computes."""
    found: list[Any] = [
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in KINDS
    ]
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, (bool, int, float, str, tuple)):
                found.append((name, value))
            elif name == "_buffers":
                # A buffer is read when the compiled code runs, unless Python has looked at its value.
                found.extend((key, id(b), None if b is None else b._version) for key, b in value.items())
            elif name == "_parameters":
                frozen = [p for p in value.values() if p is not None and not p.requires_grad]
                found.extend((id(p), p.data_ptr(), p._version) for p in frozen)
            elif name not in REGISTERED:
                found.append((name, id(value)))
    return tuple(found)


KINDS = ("cpu", "cuda")
# What torch keeps of a module besides its settings; trainable parameters are arguments.
REGISTERED = {name for name in vars(nn.Module()) if name != "training"} | {NAME}
