"""`torch.utils.checkpoint` inside a model whose parameters are substituted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_CHECKPOINTED: WeakSet[nn.Module] = WeakSet()  # models that have been seen to use it


class SubstitutedRecomputation(TorchFunctionMode):
    """Within it, what a checkpoint runs again in the backward pass runs with the substituted parameters.

    By then the forward pass is over and the model has its own parameters again, which would silently give
    another gradient. Only for `use_reentrant=False`; torch rejects the other kind.

    Args:
        model: whose forward pass runs within.
        substituted: makes a context in which the model has the parameters of this pass.
    """

    def __init__(self, model: nn.Module, substituted: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.model, self.substituted = model, substituted
        self.outer = _saving_hook()
        self.last = self.outer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        hook = _saving_hook()
        if hook is not self.last:
            self.last = hook
            if hook is not self.outer and getattr(hook, "__module__", "") == "torch.utils.checkpoint":
                self._substitute(hook)
        return func(*args, **(kwargs or {}))

    def _substitute(self, hook: Any) -> None:
        """Wrap what the checkpoint runs again; its frame is in the closure of its hook."""
        _CHECKPOINTED.add(self.model)
        names = hook.__code__.co_freevars
        frame: Any = hook.__closure__[names.index("frame")].cell_contents if "frame" in names else None
        recompute = getattr(frame, "recompute_fn", None)
        if recompute is None:
            raise NotImplementedError(
                f"{type(self.model).__name__} uses torch.utils.checkpoint, and this version of torch keeps"
                " what is run again out of reach, so the backward pass would use the wrong parameters."
                " Switch it off where tasks are adapted; use differentiation='checkpointed' to save memory."
            )
        if isinstance(recompute, _Recompute):
            return
        frame.recompute_fn = _Recompute(recompute, self.model, self.substituted)


class _Recompute:
    """A checkpoint's function to run again, with the substituted parameters."""

    def __init__(self, function: Any, model: nn.Module, substituted: Any) -> None:
        self.function, self.model, self.substituted = function, model, substituted

    def __call__(self, *args: Any) -> Any:
        with self.substituted(), SubstitutedRecomputation(self.model, self.substituted):
            return self.function(*args)


def uses_checkpoints(model: nn.Module) -> bool:
    """Whether a forward pass of `model` has been seen to use `torch.utils.checkpoint`."""
    return model in _CHECKPOINTED


def _saving_hook() -> Any:
    """The function that packs the tensors that autograd saves now, or None."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # private to torch
    hooks = None if top is None else top(False)
    return None if hooks is None else hooks[0]
