"""Support for `torch.utils.checkpoint` inside a model whose parameters are substituted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_CHECKPOINTED: WeakSet[nn.Module] = WeakSet()  # models whose forward pass has used it


class SubstitutedRecomputation(TorchFunctionMode):
    """Context manager in which checkpoints recompute with the substituted parameters.

    A checkpoint recomputes in the backward pass. Then the model has its own parameters again, which would
    silently produce a wrong gradient. Supports `use_reentrant=False` only; torch rejects the other variant.

    Args:
        model: the model whose forward pass runs in the context.
        substituted: returns a context in which the model has the parameters of this pass.
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
        """Wrap the function that the checkpoint recomputes; its frame is in the closure of its hook."""
        _CHECKPOINTED.add(self.model)
        names = hook.__code__.co_freevars
        frame: Any = hook.__closure__[names.index("frame")].cell_contents if "frame" in names else None
        recompute = getattr(frame, "recompute_fn", None)
        if recompute is None:
            raise NotImplementedError(
                f"{type(self.model).__name__} uses torch.utils.checkpoint, and in this version of torch the"
                " recomputed function is not accessible, so the backward pass would use the wrong"
                " parameters. Disable it; use differentiation='checkpointed' to save memory."
            )
        if isinstance(recompute, _Recompute):
            return
        frame.recompute_fn = _Recompute(recompute, self.model, self.substituted)


class _Recompute:
    """The function that a checkpoint recomputes, with the substituted parameters."""

    def __init__(self, function: Any, model: nn.Module, substituted: Any) -> None:
        self.function, self.model, self.substituted = function, model, substituted

    def __call__(self, *args: Any) -> Any:
        with self.substituted(), SubstitutedRecomputation(self.model, self.substituted):
            return self.function(*args)


def uses_checkpoints(model: nn.Module) -> bool:
    """Whether an earlier forward pass of `model` used `torch.utils.checkpoint`."""
    return model in _CHECKPOINTED


def _saving_hook() -> Any:
    """The current hook that packs the tensors saved by autograd, or None."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # private to torch
    hooks = None if top is None else top(False)
    return None if hooks is None else hooks[0]
