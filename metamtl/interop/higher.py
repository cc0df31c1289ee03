"""An inner loop written with `higher`, as an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..adapters.base import Adapter, require_support
from ..episode import Batch
from ..functional import Params
from ..losses import Loss
from ._plain import begin, peer, refuse_transforms

Inner = Callable[[nn.Module, Any, Batch, Loss], object]


class HigherAdapter(Adapter):
    """Parameters after an inner loop with `fmodel` and `diffopt` of `higher`.

    `inner` is the unchanged body of `with higher.innerloop_ctx(...) as (fmodel, diffopt):` in existing
    code; https://github.com/facebookresearch/higher, https://arxiv.org/abs/1910.01727.

    Differs from `innerloop_ctx` in: 1. `fmodel` starts from `params` and the gradient reaches them
    (the default `copy_initial_weights=True` stops it); 2. higher-order gradients are tracked only if
    autograd is enabled, so that evaluation under `torch.no_grad()` is cheap; 3. the optimizer is created
    again for each task.

    Args:
        inner: `inner(fmodel, diffopt, support, loss)`, which calls `diffopt.step(...)`; its return value
            is not used.
        optimizer: maps the model to the torch optimizer that higher makes differentiable; if it has only
            some of the model's parameters, only these are adapted.

    Raises:
        ImportError: if called without `higher` installed.
        ValueError: if called inside `vmap`; use `engine=engines.Loop()`.

    ```python
    def inner(fmodel, diffopt, support, loss):
        for _ in range(5):
            diffopt.step(loss(fmodel(support.x), support.y))

    sgd = HigherAdapter(inner, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    meta_backward(model, Recipe(sgd), episode, loss, engine=engines.Loop())
    ```
    """

    def __init__(self, inner: Inner, optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.inner = inner
        self.optimizer = optimizer

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        batch = require_support(support, self)
        refuse_transforms(self, params, batch)
        higher = peer("higher")
        track = torch.is_grad_enabled()
        first = begin(model, params)
        with torch.enable_grad():
            # The steps of higher.innerloop_ctx, which cannot start from other tensors than the model's.
            fmodel = higher.patch.make_functional(model)
            higher.patch.buffer_sync(model, fmodel)
            fmodel.update_params(list(first.values()))
            fmodel.track_higher_grads = track
            diffopt = higher.optim.get_diff_optim(
                self.optimizer(model), model.parameters(), fmodel=fmodel, track_higher_grads=track
            )
            self.inner(fmodel, diffopt, batch, loss)
        fast = dict(zip(first, fmodel.fast_params))
        return fast if track else {name: tensor.detach() for name, tensor in fast.items()}
