"""Helpers of the adapters for other libraries: lazy import, and initial parameters in plain autograd."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..adapters.base import initial_params
from ..functional import Params


def peer(name: str) -> ModuleType:
    """Import the library `name`.

    Raises:
        ImportError: the library is not installed, or cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"metamtl.interop.{name} needs {name}, which cannot be imported ({error});"
            f" install it with `pip install 'metamtl[{name}]'`, or with `make peers` in a checkout"
            " (learn2learn needs a special build on Python 3.11 and later).",
            name=name,
        ) from error


def begin(model: nn.Module, params: Params | None) -> Params:
    """Initial parameters of the inner loop, in the order of `model.parameters()`.

    If a parameter of the model requires a gradient, so does the returned tensor, because an inner loop
    treats other tensors as frozen. Under `torch.no_grad()`, nothing before the inner loop is tracked.
    """
    initial = initial_params(model, params)
    first = {}
    for name, param in model.named_parameters():
        tensor = initial.get(name, param)
        if param.requires_grad and not (tensor.requires_grad and torch.is_grad_enabled()):
            tensor = tensor.detach().requires_grad_()
        first[name] = tensor
    return first


def refuse_transforms(adapter: nn.Module, *trees: Any) -> None:
    """Reject tensors inside `vmap` or `torch.func.grad`, where these libraries fail or are incorrect.

    Raises:
        ValueError: a tensor is wrapped by a transform of `torch.func`.
    """
    for leaf in tree_leaves(trees):
        if isinstance(leaf, Tensor) and _wrapped(leaf):
            raise ValueError(
                f"{type(adapter).__name__} was called inside vmap or another torch.func transform, but its"
                " library differentiates one task at a time with plain autograd;"
                " pass engine=engines.Loop() to meta_backward or evaluate."
            )


def _wrapped(tensor: Tensor) -> bool:
    # A private function of torch: if it does not exist, skip the check.
    functorch = getattr(torch._C, "_functorch", None)
    check = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return bool(check(tensor)) if check is not None else False
