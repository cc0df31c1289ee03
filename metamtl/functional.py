"""Calling a module with parameters that are not its own, without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

Params = dict[str, Tensor]


def forward(model: nn.Module, params: Params, x: Any, task: Any = None) -> Any:
    """Output of `model` on `x` with `params` in place of its own.

    A tuple is handed over as positional arguments, a dict as keywords, anything else as the one
    argument. Where `task` is a string (a named task, or a tuple of names) the model gets it as
    `task=`, to choose its head; task ids of few-shot episodes stay with the adapter.

    The module's buffers are never written: a BatchNorm that would update its running statistics
    updates copies, which are dropped.
    """
    args, kwargs = ((), dict(x)) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    if is_name(task):
        kwargs["task"] = task
    copies = {
        f"{module}.{name}" if module else name: buffer.clone()
        for module, norm in running_norms(model)
        for name, buffer in norm.named_buffers(recurse=False)
    }
    return functional_call(model, {**params, **copies}, args, kwargs)


def twice_differentiable() -> AbstractContextManager[None]:
    """Within it, attention runs in the kernel that has a second derivative and a rule for vmap.

    The fused kernels have neither, and are faster: so only where second order or vmap asks for it.
    """
    return sdpa_kernel(SDPBackend.MATH)


def is_name(task: Any) -> bool:
    """Whether `task` names one task, or several at once, rather than giving ids."""
    return isinstance(task, str) or (
        isinstance(task, tuple) and bool(task) and all(isinstance(name, str) for name in task)
    )


def running_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The BatchNorms, with their names, that would write running statistics in a forward pass."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]


def trainable(model: nn.Module) -> Params:
    """The parameters that require a gradient, by name; a tied one stands once."""
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def under(names: Iterable[str], prefix: str) -> list[str]:
    """Those of `names` that are `prefix` or begin with it as a whole path: `head` takes `head.weight`."""
    return [name for name in names if not prefix or name == prefix or name.startswith(prefix + ".")]


def named_by(model: nn.Module, prefixes: str | Iterable[str] | None, argument: str = "adapts") -> list[str]:
    """Names of the trainable parameters under one or several prefixes; all, where None.

    Raises:
        ValueError: a prefix that names no parameter, or only frozen ones.
    """
    candidates = list(trainable(model))
    if prefixes is None:
        return candidates
    listed = [prefixes] if isinstance(prefixes, str) else list(prefixes)
    chosen: dict[str, None] = {}
    for prefix in listed:
        found = under(candidates, prefix)
        if not found:
            raise ValueError(_no_parameter(model, prefix, argument))
        chosen.update(dict.fromkeys(found))
    return [name for name in candidates if name in chosen]


def _no_parameter(model: nn.Module, prefix: str, argument: str) -> str:
    every = [name for name, _ in model.named_parameters()]
    kind = type(model).__name__
    if under(every, prefix):
        return (
            f"{argument}={prefix!r} names only frozen parameters of {kind};"
            " call requires_grad_(True) on them, or name others."
        )
    tops = sorted({name.split(".")[0] for name in every})
    return f"{argument}={prefix!r} names no parameter of {kind}; it has {', '.join(map(repr, tops))}."
