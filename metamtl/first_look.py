"""What shows in a model's first forward pass: parameters it does not use, operations without a slope."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# All functions that `once_differentiable` returns are made from one piece of code.
ONCE = once_differentiable(lambda ctx: None).__code__
_SEEN: WeakKeyDictionary[nn.Module, set[bool]] = WeakKeyDictionary()


def first_look(model: nn.Module, params: dict[str, Tensor], twice: bool) -> AbstractContextManager[object]:
    """Around a forward pass of `model` with `params`; looks at the first, and the first to be `twice`
    differentiated.

    Warns:
        UserWarning: trainable parameters that no operation of the pass takes.

    Raises:
        RuntimeError: a parameter that the pass has written in place.
        NotImplementedError: a `torch.autograd.Function` marked `once_differentiable`, where a second
            derivative is asked for; torch would take its gradient for a constant, without a word.
    """
    return nullcontext() if twice in _SEEN.get(model, ()) else _Look(model, params, twice)


class _Look(TorchFunctionMode):
    def __init__(self, model: nn.Module, params: dict[str, Tensor], twice: bool) -> None:
        super().__init__()
        self.model, self.twice = model, twice
        trainable = [name for name, param in model.named_parameters() if param.requires_grad]
        self.given = [(name, params[name], params[name]._version) for name in trainable if name in params]
        self.unused = {id(param): name for name, param, _ in self.given}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            self.unused.pop(id(leaf), None)
            if self.twice and isinstance(leaf, type) and issubclass(leaf, Function):
                self._refuse_once(leaf)
        return func(*args, **(kwargs or {}))

    def _refuse_once(self, function: type[Function]) -> None:
        if getattr(function.backward, "__code__", None) is ONCE:
            raise NotImplementedError(
                f"{function.__name__} in {type(self.model).__name__} is marked once_differentiable, and"
                " order='exact' or 'recompute' needs its second derivative; write its backward in"
                " differentiable operations, or use order='first'."
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is not None:
            return
        written = [name for name, param, version in self.given if param._version != version]
        if written:
            raise RuntimeError(
                f"{type(self.model).__name__} writes its parameters {', '.join(written)} in place in its"
                " forward pass (as an embedding with max_norm does), so adapting to a task would change the"
                " model; compute without writing."
            )
        seen = _SEEN.setdefault(self.model, set())
        if self.unused and not seen:
            warnings.warn(
                f"{type(self.model).__name__} does not use {', '.join(self.unused.values())} in its forward"
                " pass: adaptation leaves them as they are, and their gradient is zero. Freeze them with"
                " requires_grad_(False), or remove them.",
                stacklevel=2,
            )
        seen.add(self.twice)
