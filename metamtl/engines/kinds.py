"""What `Compiled` remembers of one kind of work. It may be wrong about speed, never about numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..adapters.inner_loop import InnerLoop
from ..functional import trainable
from ..functional.structure import attributes_of, changed_attributes
from . import compiled_parts
from .backend import inductor
from .probe import Probe
from .problem import TaskProblem
from .step_loop import StepLoop

BACKEND: str | Callable[..., Any] = inductor  # of torch.compile
RECOMPILE_LIMIT = 8  # times that a part is compiled again before its work goes to Vmap


class Kind:
    """One kind of work: its compiled parts, and why it is not compiled, if it is not.

    Attributes:
        reason: why the work runs under `Vmap`; None if it is compiled.
        by_parts: True if a single inner step is compiled and called K times; False if all K steps are one
            function.
    """

    def __init__(self, reason: str | None) -> None:
        self.reason, self.reported = reason, False
        self.examined, self.calls, self.by_parts = False, 0, True
        self._leftovers: list[tuple[str, str]] = []
        self._parts: dict[str, Callable[..., Any]] = {}
        self._loops: dict[tuple[bool, ...], StepLoop] = {}

    def part(self, name: str) -> Callable[..., Any]:
        """The compiled function `name` of `compiled_parts`. Its guards are torch's."""
        if name not in self._parts:
            self._parts[name] = torch.compile(getattr(compiled_parts, name), backend=BACKEND, **_options())
        return self._parts[name]

    def step_loop(self, loop: InnerLoop) -> StepLoop:
        """The compiled inner steps."""
        first_orders = tuple(sorted({loop.first_order(k) for k in range(loop.num_steps)}))
        if first_orders not in self._loops:
            self._loops[first_orders] = StepLoop(BACKEND, _options(), first_orders)
        return self._loops[first_orders]

    def examine(self, problem: TaskProblem, data: Any) -> None:
        """Run one task without compiling, to see what it needs: wrong input raises its own error here."""
        self.examined = True
        probe = Probe.of(problem, data)
        self.by_parts = probe.by_parts
        if probe.draws:
            self.reason = "it draws random numbers"
            return
        with torch.no_grad():
            changed = _attributes_set(problem, data[1][0])
        paths = {module: path for path, module in problem.model.named_modules()}
        self._leftovers = [(paths[module], name) for module, name in changed]

    def with_leftovers(self, problem: TaskProblem) -> TaskProblem:
        """`problem`, with the attributes that its model's forward pass sets."""
        if not self._leftovers:
            return problem
        modules = dict(problem.model.named_modules())
        pairs = tuple((modules[path], name) for path, name in self._leftovers if path in modules)
        return replace(problem, leftovers=pairs, loop=problem.loop.with_leftovers(pairs))


def _options() -> dict[str, Any]:
    # A cache of its own, or all the models of a process would share one limit.
    return {
        "fullgraph": True,
        "dynamic": False,
        "isolate_recompiles": True,
        "recompile_limit": RECOMPILE_LIMIT,
    }


def _attributes_set(problem: TaskProblem, x: Any) -> tuple[tuple[nn.Module, str], ...]:
    """The attributes that a forward pass sets; the model is restored."""
    changed: list[tuple[nn.Module, str]] = []
    before = attributes_of(problem.structure)

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        changed.extend(changed_attributes(problem.structure, before))

    handle = problem.model.register_forward_hook(look)
    try:
        problem.output({**problem.frozen, **trainable(problem.model)}, x)
    finally:
        handle.remove()
    return tuple(changed)


def code_objects(problem: TaskProblem) -> tuple[CodeType, ...]:
    """The code of all methods of the classes that the work uses.

    torch's guards do not notice a method that is replaced on its class, or whose code is swapped in place.
    Other code means another kind, which is compiled anew; the guards decide about everything else.
    """
    classes: dict[type, None] = {}
    for module in (*problem.model.modules(), *problem.adapter.modules()):
        classes[type(module)] = None
    for other in (problem.loss, getattr(problem.loss, "loss", None), problem.objective):
        classes[type(other)] = None
        for module in other.modules() if isinstance(other, nn.Module) else ():
            classes[type(module)] = None
    return tuple(code for cls in classes for base in cls.__mro__ if _is_ours(base) for code in _codes(base))


def _is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] not in ("torch", "builtins", "abc", "functools", "typing")


def _codes(cls: type) -> list[CodeType]:
    functions = (getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(cls).values())
    return [function.__code__ for function in functions if isinstance(function, FunctionType)]


def shapes(trees: Any) -> Any:
    """Shapes, dtypes and devices of the tensors, and the types of other leaves."""
    return tuple(
        (tensor.shape, tensor.dtype, tensor.device) if isinstance(tensor, Tensor) else type(tensor)
        for tensor in tree_leaves(trees)
    )


def precision() -> Any:
    """The settings of autocast."""
    return tuple(
        (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")
    )
