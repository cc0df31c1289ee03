"""Fine-tuning on the support labels and the entropy of the query predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import ADAPTER_VALUE, Params, forward, gradient, select_parameters
from ..losses import Loss
from .base import Adapter, initial_params, require_support

X, CLASSES = f"{ADAPTER_VALUE}x", f"{ADAPTER_VALUE}classes"


class TransductiveFineTuning(Adapter):
    """Gradient steps on the support cross-entropy plus the entropy of the query predictions.

    Dhillon, Chaudhari, Ravichandran, Soatto 2020, https://arxiv.org/abs/1909.02729. K steps minimize
    `CE(support) + weight mean H(p of a query)` over the selected parameters. They run when the query inputs
    are known, in `predict`. **Transductive**: a prediction depends on all query inputs. The outer gradient
    is exact. `Chain(Prototype(), TransductiveFineTuning(...))` starts from class means, as in the paper.

    Differs from the paper in: plain gradient steps instead of Adam.

    Args:
        steps, lr: number and size of the gradient steps.
        adapts: as in `Gradient`.
        weight: weight of the entropy; 1 in the paper.

    Raises:
        ValueError: `steps` is negative; when called: the inputs are not one floating-point tensor.

    >>> TransductiveFineTuning(5, 0.1).transductive
    True
    """

    def __init__(
        self,
        steps: int = 5,
        lr: float = 0.01,
        adapts: str | Iterable[str] | None = None,
        *,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if steps < 0:
            raise ValueError(f"TransductiveFineTuning: steps={steps} cannot be negative.")
        self.steps, self.lr, self.weight = steps, lr, weight
        self.adapts = adapts if adapts is None or isinstance(adapts, str) else tuple(adapts)

    @property
    def transductive(self) -> bool:
        return True

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        select_parameters(model, self.adapts)

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        x, y = require_support(support, self)
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            raise ValueError(
                "TransductiveFineTuning takes inputs that are one floating-point tensor, found"
                f" {x.dtype if isinstance(x, Tensor) else type(x).__name__}; use Gradient."
            )
        params = initial_params(model, params)
        with torch.no_grad():
            ways = forward(model, params, x, task if isinstance(task, str) else None).shape[1]
        classes = (y[:, None] == torch.arange(ways, device=y.device)).to(x.dtype)
        return {**params, X: x, CLASSES: classes}

    def predict(self, model: nn.Module, params: Params, x: Any, task: Any = None, **call: Any) -> Any:
        call = {**call, "second_order": torch.is_grad_enabled()}
        shared = {name: p for name, p in params.items() if name not in (X, CLASSES)}
        phi = {name: shared[name] for name in select_parameters(model, self.adapts)}

        def objective(phi: Params) -> Tensor:
            log_support = forward(model, {**shared, **phi}, params[X], task, **call).log_softmax(1)
            log_p = forward(model, {**shared, **phi}, x, task, **call).log_softmax(1)
            entropy = -(log_p.exp() * log_p).sum(1).mean()
            return self.weight * entropy - (params[CLASSES] * log_support).sum(1).mean()

        for _ in range(self.steps):
            # Views, because one parameter may have been computed from another one.
            views = {name: param.view_as(param) for name, param in phi.items()}
            step = gradient(objective, views)
            phi = {n: p - self.lr * step[n] if n in step else p for n, p in phi.items()}
        return forward(model, {**shared, **phi}, x, task, **call)
