"""All tasks at once, as one batched computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from ..functional import Params, plain_kernels
from .base import Engine, Function, Rows


class Vmap(Engine):
    """`torch.vmap` over tasks.

    Args:
        chunk_size: tasks at a time; all, where None. Smaller chunks need less memory.

    Dropout and its like draw their own numbers for every task.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: give at least 1, or None for all tasks at once.")
        self.chunk_size = chunk_size

    def __repr__(self) -> str:
        return f"Vmap(chunk_size={self.chunk_size})"

    def rows(self, function: Function, shared: Params, own: Params, data: Any) -> Rows:
        # Detached, or plain autograd would record a graph of its own around vmap's.
        # Contiguous, for max-pooling of channels-last tensors has no second derivative under vmap.
        shared = {name: param.detach().contiguous() for name, param in shared.items()}
        own = {name: param.detach() for name, param in own.items()}

        def one_task(data: Any) -> tuple[Params, Params, Tensor]:
            (rows, mine), loss = grad(function, argnums=(0, 1), has_aux=True)(shared, own, data)
            return rows, mine, loss

        rows, mine, losses = self._vmap(one_task, data)
        return Rows(losses, rows, {name: gradient.mean(0) for name, gradient in mine.items()}, {})

    def map(self, function: Callable[[Any], Any], data: Any) -> Any:
        with torch.no_grad():
            return self._vmap(function, data)

    def _vmap(self, function: Callable[[Any], Any], data: Any) -> Any:
        data = tree_map(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, data)
        axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, data)
        batched = vmap(function, in_dims=(axes,), randomness="different", chunk_size=self.chunk_size)
        with plain_kernels():
            return batched(data)
