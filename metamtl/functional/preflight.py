"""Checks of a model's first forward pass: unused parameters, missing derivatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .decompositions import observe

# All functions that `once_differentiable` returns share this code object.
ONCE = once_differentiable(lambda ctx: None).__code__


class Pass(NamedTuple):
    """The kind of a forward pass.

    Attributes:
        twice: whether it is differentiated twice.
        whole: whether it is expected to use all parameters.
        training: whether the model is in training mode.
        stages: the ids of the submodules or functions that run; empty for the whole model.
        signature: that of the structure of the model.
    """

    twice: bool
    whole: bool
    training: bool
    stages: tuple[int, ...]
    signature: int


_CHECKED: WeakKeyDictionary[nn.Module, set[Pass]] = WeakKeyDictionary()


def preflight(
    model: nn.Module,
    params: dict[str, Tensor],
    *,
    twice: bool,
    whole: bool,
    signature: int,
    stages: tuple[Callable[..., Any], ...] | None = None,
) -> AbstractContextManager[Callable[[Any], None]] | None:
    """Context manager that checks a forward pass; None if a pass of the same kind was already checked.

    It yields a function to call with the output of the pass.

    Args:
        twice, whole, signature: as in `Pass`.
        stages: submodules to run instead of the whole model.

    Warns:
        UserWarning: no operation of the pass uses some of the trainable parameters.

    Raises:
        RuntimeError: the pass has written a parameter in place.
        NotImplementedError: a second derivative is needed, but a `torch.autograd.Function` is marked
            `once_differentiable`: `torch.autograd.grad` would silently treat its gradient as a constant.
    """
    stage_ids = tuple(id(getattr(stage, "function", stage)) for stage in stages or ())
    kind = Pass(twice, whole, model.training, stage_ids, signature)
    if kind in _CHECKED.get(model, ()):
        return None
    if any(map(is_compiled, model.modules())):  # the operations of compiled code cannot be intercepted
        _CHECKED.setdefault(model, set()).add(kind)
        return None
    return _Look(model, params, kind)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module has been compiled by `torch.compile`."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


class _Look(TorchFunctionMode):
    def __init__(self, model: nn.Module, params: dict[str, Tensor], kind: Pass) -> None:
        super().__init__()
        self.model, self.params, self.kind = model, params, kind
        trainable = [name for name, param in model.named_parameters() if param.requires_grad]
        passed = [name for name in trainable if name in params] if kind.whole else []
        self.versions = [(name, params[name], params[name]._version) for name in passed]
        self.unused = {id(params[name]): name for name in passed}

    def __enter__(self) -> Callable[[Any], None]:  # type: ignore[override]
        super().__enter__()
        return self.check_output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        observe(self.model, func)
        for leaf in tree_leaves((args, kwargs)):
            self.unused.pop(id(leaf), None)
            # Inside a transform, a Function that the pass applies is one of the arguments.
            if isinstance(leaf, type) and issubclass(leaf, Function):
                self._reject_once_differentiable(leaf)
        return func(*args, **(kwargs or {}))

    def check_output(self, output: Any) -> None:
        """Raise an error if the graph of an output lacks the second derivatives that are needed."""
        queue = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        visited = set()
        while self.kind.twice and queue:
            node = queue.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            self._reject_once_differentiable(getattr(node, "_forward_cls", None))
            queue += [parent for parent, _ in node.next_functions]

    def _reject_once_differentiable(self, function: type[Function] | None) -> None:
        if not self.kind.twice or function is None:
            return
        if getattr(function.backward, "__code__", None) is ONCE:
            raise NotImplementedError(
                f"{function.__name__} in {type(self.model).__name__} is marked once_differentiable, and"
                " differentiation='exact' or 'checkpointed' needs its second derivative; write its backward"
                " with differentiable operations, or use differentiation='first_order'."
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is not None:
            return
        names = [name for name, param, version in self.versions if param._version != version]
        if names:
            raise RuntimeError(
                f"{type(self.model).__name__} writes its parameters {', '.join(names)} in place in its"
                " forward pass (as an embedding with max_norm does), so adapting to a task would change the"
                " model; use operations that are not in place."
            )
        kinds = _CHECKED.setdefault(self.model, set())
        if self.unused and not any(kind.whole for kind in kinds):
            warnings.warn(
                f"{type(self.model).__name__} does not use {', '.join(self.unused.values())} in its forward"
                " pass: adaptation does not change them, and their gradient is zero. Freeze them with"
                " requires_grad_(False), or remove them.",
                stacklevel=2,
            )
        kinds.add(self.kind)
