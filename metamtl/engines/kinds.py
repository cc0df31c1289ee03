"""The state of `Compiled` for one kind of workload. It affects speed, never results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import get_overridable_functions
from torch.utils._pytree import tree_leaves

from ..adapters.inner_loop import InnerLoop
from ..functional import forward, trainable, vmap_compatible_kernels
from ..functional.decompositions import observed
from ..functional.structure import attributes_of, changed_attributes
from ..objectives.base import reads
from . import compiled_parts
from .backend import inductor
from .probe import Probe
from .problem import TaskProblem
from .step_loop import StepLoop

BACKEND: str | Callable[..., Any] = inductor  # the backend of torch.compile
RECOMPILE_LIMIT = 8  # recompilations of a part before its workload runs under Vmap


class Kind:
    """One kind of workload: its compiled parts, or the reason why it is not compiled.

    Attributes:
        reason: why the workload runs under `Vmap`; None if it is compiled.
        by_parts: True if a single inner step is compiled and called K times; False if all K steps are
            compiled as one function.
    """

    def __init__(self, reason: str | None) -> None:
        self.reason, self.reported = reason, False
        self.examined, self.calls, self.by_parts = False, 0, True
        self._leftovers: list[tuple[str, str]] = []
        self._parts: dict[str, Callable[..., Any]] = {}
        self._loops: dict[tuple[bool, ...], StepLoop] = {}

    def part(self, name: str) -> Callable[..., Any]:
        """The compiled function `name` of `compiled_parts`, with the guards of torch.compile."""
        if name not in self._parts:
            self._parts[name] = torch.compile(getattr(compiled_parts, name), backend=BACKEND, **_options())
        return self._parts[name]

    def step_loop(self, loop: InnerLoop) -> StepLoop:
        """The compiled inner steps."""
        first_orders = tuple(sorted({loop.first_order(k) for k in range(loop.num_steps)}))
        if first_orders not in self._loops:
            self._loops[first_orders] = StepLoop(BACKEND, _options(), first_orders)
        return self._loops[first_orders]

    def examine(self, problem: TaskProblem, data: Any) -> TaskProblem:
        """Run one task uncompiled to determine what it needs. Invalid input raises its own error here.

        Returns:
            `problem`, with what this has shown of the model.
        """
        self.examined = True
        probe = Probe.of(problem, data)
        self.by_parts = probe.by_parts and reads(problem.objective) == "end"
        hidden = observed(problem.model).difference(*get_overridable_functions().values())
        if probe.draws:
            self.reason = "it draws random numbers"
        elif hidden:
            names = ", ".join(sorted(f"torch.{function.__name__}" for function in hidden))
            self.reason = f"torch.compile cannot decompose {names}, as second derivatives require"
        if self.reason is not None:
            return problem
        with torch.no_grad(), vmap_compatible_kernels():  # as compiled code runs
            changes = _attributes_set(problem, data[1][0])
        paths = {module: path for path, module in problem.model.named_modules()}
        self._leftovers = [(paths[module], name) for module, name in changes]
        return problem.rebuilt()

    def with_leftovers(self, problem: TaskProblem) -> TaskProblem:
        """`problem` with the attributes that the forward pass of its model sets."""
        if not self._leftovers:
            return problem
        modules = dict(problem.model.named_modules())
        pairs = tuple((modules[path], name) for path, name in self._leftovers if path in modules)
        return replace(problem, leftovers=pairs, loop=problem.loop.with_leftovers(pairs))


def _options() -> dict[str, Any]:
    # A separate cache, because otherwise all models of a process would share one recompilation limit.
    return {
        "fullgraph": True,
        "dynamic": False,
        "isolate_recompiles": True,
        "recompile_limit": RECOMPILE_LIMIT,
    }


def _attributes_set(problem: TaskProblem, x: Any) -> tuple[tuple[nn.Module, str], ...]:
    """The attributes that a forward pass sets. The model is restored afterwards."""
    changes: list[tuple[nn.Module, str]] = []
    original = attributes_of(problem.structure)

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        changes.extend(changed_attributes(problem.structure, original))

    handle = problem.model.register_forward_hook(record)
    try:
        params = {**problem.frozen, **trainable(problem.model)}
        forward(problem.model, params, x, problem.name, structure=problem.structure)
    finally:
        handle.remove()
    return tuple(changes)


def code_objects(problem: TaskProblem) -> tuple[CodeType, ...]:
    """The code of all methods of the classes that the workload uses.

    The guards of torch.compile do not detect that a method of a class, or the code object of a method, was
    replaced. Different code is therefore another kind of workload, which is compiled separately; the guards
    detect all other changes.
    """
    classes: dict[type, None] = {}
    for module in (*problem.model.modules(), *problem.adapter.modules()):
        classes[type(module)] = None
    for other in (problem.loss, getattr(problem.loss, "loss", None), problem.objective):
        classes[type(other)] = None
        for module in other.modules() if isinstance(other, nn.Module) else ():
            classes[type(module)] = None
    bases = [base for cls in classes for base in cls.__mro__ if _is_user_code(base)]
    return tuple(code for base in bases for code in _codes(base))


def _is_user_code(cls: type) -> bool:
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
