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

# All functions that `once_differentiable` returns are made from one piece of code.
ONCE = once_differentiable(lambda ctx: None).__code__


class Pass(NamedTuple):
    """The kind of a forward pass.

    Attributes:
        twice: whether it is differentiated twice.
        whole: whether it is expected to use all parameters.
        training: the model's mode.
        stages: the submodules that run, by `id`; empty for the whole model.
    """

    twice: bool
    whole: bool
    training: bool
    stages: tuple[int, ...]


_SEEN: WeakKeyDictionary[nn.Module, set[Pass]] = WeakKeyDictionary()


def preflight(
    model: nn.Module,
    params: dict[str, Tensor],
    *,
    twice: bool,
    whole: bool,
    stages: tuple[nn.Module, ...] | None = None,
) -> AbstractContextManager[Callable[[Any], None]] | None:
    """A context around a forward pass of `model` with `params`, for the first pass of each kind.

    Yields a function to call with the output of the pass.

    Args:
        twice, whole: as in `Pass`.
        stages: submodules to run instead of the whole model.

    Warns:
        UserWarning: trainable parameters that no operation of the pass takes.

    Raises:
        RuntimeError: a parameter that the pass has written in place.
        NotImplementedError: a `torch.autograd.Function` marked `once_differentiable`, where a second
            derivative is needed: `torch.autograd.grad` would silently take its gradient for a constant.
    """
    kind = Pass(twice, whole, model.training, tuple(map(id, stages or ())))
    if kind in _SEEN.get(model, ()):
        return None
    if any(map(is_compiled, model.modules())):  # compiled code shows no single operations
        _SEEN.setdefault(model, set()).add(kind)
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
        for leaf in tree_leaves((args, kwargs)):
            self.unused.pop(id(leaf), None)
            # Only inside a transform is a Function that the pass applies among the arguments.
            if isinstance(leaf, type) and issubclass(leaf, Function):
                self._refuse_once(leaf)
        return func(*args, **(kwargs or {}))

    def check_output(self, output: Any) -> None:
        """Reject an output whose graph does not have the derivatives that are needed."""
        todo = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        visited = set()
        while self.kind.twice and todo:
            node = todo.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            self._refuse_once(getattr(node, "_forward_cls", None))
            todo += [parent for parent, _ in node.next_functions]

    def _refuse_once(self, function: type[Function] | None) -> None:
        if not self.kind.twice or function is None:
            return
        if getattr(function.backward, "__code__", None) is ONCE:
            raise NotImplementedError(
                f"{function.__name__} in {type(self.model).__name__} is marked once_differentiable, and"
                " differentiation='exact' or 'checkpointed' needs its second derivative; write its backward"
                " in differentiable operations, or use differentiation='first_order'."
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is not None:
            return
        written = [name for name, param, version in self.versions if param._version != version]
        if written:
            raise RuntimeError(
                f"{type(self.model).__name__} writes its parameters {', '.join(written)} in place in its"
                " forward pass (as an embedding with max_norm does), so adapting to a task would change the"
                " model; compute without writing."
            )
        seen = _SEEN.setdefault(self.model, set())
        if self.unused and not any(before.whole for before in seen):
            warnings.warn(
                f"{type(self.model).__name__} does not use {', '.join(self.unused.values())} in its forward"
                " pass: adaptation leaves them as they are, and their gradient is zero. Freeze them with"
                " requires_grad_(False), or remove them.",
                stacklevel=2,
            )
        seen.add(self.kind)
