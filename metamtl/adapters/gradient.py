"""K gradient steps on the support set: MAML, FOMAML, ANIL, BOIL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.func import grad

from ..episode import Batch
from ..functional import Params, forward, named_by
from ..task import Loss
from .base import Adapter, needed, start

Order = Literal["exact", "first"]


class Gradient(Adapter):
    """K steps of gradient descent on the support loss.

    `phi_0 = theta`, `phi_{k+1} = phi_k - lr_k * grad L_support(phi_k)`, over the parameters that
    `adapts` names; the others stay. Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400;
    with `adapts="head"` ANIL (https://arxiv.org/abs/1909.09157), with `adapts="body"` BOIL
    (https://arxiv.org/abs/2008.08882).

    Args:
        steps: K; 0 adapts nothing.
        lr: the step size, or K of them.
        adapts: a prefix, or several, of parameter names (`"head"` takes `head.weight` and `head.bias`);
            all trainable parameters, where None.
        order: `"exact"` differentiates through the inner gradients; `"first"` takes them as constants
            (first-order MAML).

    Raises:
        ValueError: negative `steps`, an unknown `order`, rates that are not K in number; when called,
            a prefix that names no parameter.

    >>> import torch
    >>> model, loss = nn.Linear(1, 1, bias=False), nn.functional.mse_loss
    >>> fast = Gradient(steps=1, lr=0.5)(model, (torch.ones(4, 1), torch.ones(4, 1)), loss)
    >>> bool(torch.isclose(fast["weight"], torch.ones(1)).all())  # the minimum, in one step
    True
    """

    def __init__(
        self,
        steps: int = 1,
        lr: float | Sequence[float] = 0.01,
        adapts: str | Iterable[str] | None = None,
        order: Order = "exact",
    ) -> None:
        super().__init__()
        if steps < 0:
            raise ValueError(f"steps={steps}: the number of inner steps cannot be negative.")
        if order not in ("exact", "first"):
            raise ValueError(f"order={order!r} is not one of 'exact', 'first'.")
        rates = tuple(lr) if isinstance(lr, Sequence) else (lr,) * steps
        if len(rates) != steps:
            raise ValueError(f"lr gives {len(rates)} rates for {steps} steps; give one number, or {steps}.")
        self.steps, self.lr, self.order = steps, rates, order
        self.adapts = adapts if adapts is None or isinstance(adapts, str) else tuple(adapts)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, lr={self.lr}, adapts={self.adapts!r}, order={self.order!r}"

    @property
    def gradient_evaluations(self) -> int:
        # The exact gradient goes back through every inner gradient once more.
        return self.steps * (2 if self.order == "exact" else 1)

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        named_by(model, self.adapts)

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        *_, last = self.path(model, support, loss, params=params, task=task)
        return last

    def path(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Iterator[Params]:
        """The parameters after 0, 1, ..., K steps."""
        names = named_by(model, self.adapts)
        params = start(model, params)
        yield params
        for lr in self.lr:
            params = self.step(model, params, names, needed(support, self), loss, lr, task)
            yield params

    def step(
        self,
        model: nn.Module,
        params: Params,
        names: Sequence[str],
        support: Batch,
        loss: Loss,
        lr: float,
        task: Any = None,
    ) -> Params:
        """One step from `params`, over the parameters `names`."""
        # Detached before the gradient is taken, not after, so that no graph is built for nothing.
        seen = {n: p.detach() for n, p in params.items()} if self.order == "first" else params

        def support_loss(adapted: Params) -> Tensor:
            return loss(forward(model, {**seen, **adapted}, support.x, task), support.y)

        gradients = grad(support_loss)({name: seen[name] for name in names})
        return {**params, **{name: params[name] - lr * gradients[name] for name in names}}
