"""What the adapters around other libraries share: a late import, and a start in plain autograd."""

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
    """The library `name`, imported now.

    Raises:
        ImportError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"metamtl.interop.{name} needs {name}, which cannot be imported ({error});"
            f" install it with `pip install 'metamtl[{name}]'`, or with `make peers` in a checkout"
            " (learn2learn has to be built in a special way on Python 3.11 and later).",
            name=name,
        ) from error


def begin(model: nn.Module, params: Params | None) -> Params:
    """Every parameter to start from, in the order of `model.parameters()`.

    Where the model's own parameter requires a gradient, so does the tensor returned, since an inner
    loop takes the others for frozen. Under `torch.no_grad()` nothing before the inner loop is tracked.
    """
    given = initial_params(model, params)
    first = {}
    for name, own in model.named_parameters():
        tensor = given.get(name, own)
        if own.requires_grad and not (tensor.requires_grad and torch.is_grad_enabled()):
            tensor = tensor.detach().requires_grad_()
        first[name] = tensor
    return first


def refuse_transforms(adapter: nn.Module, *trees: Any) -> None:
    """Refuse tensors inside `vmap` or `torch.func.grad`, where these libraries give wrong results or none.

    Raises:
        ValueError: a tensor that a transform of `torch.func` has wrapped.
    """
    for leaf in tree_leaves(trees):
        if isinstance(leaf, Tensor) and _wrapped(leaf):
            raise ValueError(
                f"{type(adapter).__name__} was called inside vmap or another torch.func transform, but the"
                " library behind it differentiates one task at a time with plain autograd;"
                " pass engine=engines.Loop() to meta_backward or evaluate."
            )


def _wrapped(tensor: Tensor) -> bool:
    # Private to torch, so that its absence must not break what would work.
    functorch = getattr(torch._C, "_functorch", None)
    check = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return bool(check(tensor)) if check is not None else False
