"""All tasks as one batched computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from ..functional import Params, trainable, vmap_compatible_kernels
from ..functional.preflight import is_compiled
from .base import Engine, TaskGradients
from .loop import DETACHED, adapted_outputs
from .problem import TaskProblem


class Vmap(Engine):
    """Run all tasks as one batch, using `torch.vmap` over `torch.func.grad`.

    Dropout draws different random numbers for each task.

    Args:
        chunk_size: number of tasks that run at the same time; if None, all. Smaller chunks need less
            memory.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
            raise ValueError(f"chunk_size={chunk_size}: pass at least 1, or None for all tasks at once.")
        self.chunk_size = chunk_size

    def __repr__(self) -> str:
        return f"Vmap(chunk_size={self.chunk_size})"

    def check(self, model: nn.Module) -> None:
        compiled = [name for name, module in model.named_modules() if is_compiled(module)]
        if compiled:
            raise ValueError(
                f"{type(model).__name__} has a compiled module ({compiled[0] or 'itself'!r}), which"
                " torch.func cannot transform; use engine=Loop(), or pass the uncompiled model with"
                " engine=Compiled()."
            )

    def gradients(
        self, problem: TaskProblem, shared: Params, adapter_params: Params, data: Any
    ) -> TaskGradients:
        # Detached, because autograd would otherwise record another graph outside of vmap.
        # Contiguous, because max-pooling of channels-last tensors has no second derivative under vmap.
        shared = {name: param.detach().contiguous() for name, param in shared.items()}
        adapter_params = {name: param.detach() for name, param in adapter_params.items()}

        def objective(shared: Params, adapter_params: Params, data: Any) -> tuple[Tensor, Tensor]:
            value, loss = problem(shared, adapter_params, data)
            if not value.requires_grad:
                raise ValueError(DETACHED.format(task="0 and of all others"))
            return value, loss

        def one_task(data: Any) -> tuple[Params, Params, Tensor]:
            (rows, adapter_rows), loss = grad(objective, argnums=(0, 1), has_aux=True)(
                shared, adapter_params, data
            )
            return rows, adapter_rows, loss

        rows, adapter_rows, losses = self._vmap(one_task, data)
        return TaskGradients(losses, rows, adapter_rows, {})

    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        shared = {name: param.detach() for name, param in trainable(problem.model).items()}
        with torch.no_grad():
            return self._vmap(lambda data: adapted_outputs(problem, shared, data, every), data)  # type: ignore[no-any-return]

    def _vmap(self, function: Callable[[Any], Any], data: Any) -> Any:
        data = tree_map(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, data)
        axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, data)
        batched = vmap(function, in_dims=(axes,), randomness="different", chunk_size=self.chunk_size)
        with vmap_compatible_kernels():
            try:
                return batched(data)
            except RuntimeError as error:
                if any(word in str(error) for word in _UNSUPPORTED) and "Loop" not in str(error):
                    raise RuntimeError(
                        "the loss, the adapter or the model uses an operation that vmap does not support"
                        f" ({str(error).splitlines()[0]}); use engine=Loop()."
                    ) from error
                raise


_UNSUPPORTED = ("vmap", "saved tensor hooks")  # words in the error messages of torch
