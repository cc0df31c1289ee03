"""A linear head computed from class means: ProtoNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params, canonical_names, forward, of_module
from ..losses import Loss
from .base import Adapter, initial_params, require_support


class Prototype(Adapter):
    """A linear head whose scores are the negative squared distances to the class means.

    Let `c_n` be the mean of the body's features over the support examples of class n. Then `W_n = 2 c_n`
    and `b_n = -|c_n|^2`, so that `W_n f + b_n = |f|^2 - |f - c_n|^2`. The first term is the same for all
    classes and cancels in the softmax. Snell, Swersky, Zemel 2017, https://arxiv.org/abs/1703.05175.

    Args:
        ways: number of classes N. If None, the number of class ids of the task (so that training may use
            more classes than the test); without ids, the number of outputs of the head.
        body: name of the module that computes the features `[S, F]`.
        head: name of the linear head, with a bias, that is applied to them.

    >>> from metamtl import nets
    >>> model = nets.mlp(2, 8, 3)
    >>> support = Batch(torch.randn(6, 2), torch.arange(3).repeat(2))
    >>> Prototype()(model, support, nn.functional.cross_entropy)["head.weight"].shape
    torch.Size([3, 8])
    """

    def __init__(self, ways: int | None = None, body: str = "body", head: str = "head") -> None:
        super().__init__()
        self.ways, self.body, self.head = ways, body, head

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        for argument, name in (("body", self.body), ("head", self.head)):
            if name not in modules:
                tops = sorted(child for child, _ in model.named_children())
                raise ValueError(
                    f"{argument}={name!r} names no module of {type(model).__name__}; it has"
                    f" {', '.join(map(repr, tops))}."
                )
        if getattr(modules[self.head], "bias", None) is None:
            raise ValueError(
                f"Prototype writes {self.head}.weight and {self.head}.bias, but"
                f" {type(modules[self.head]).__name__} has no bias; use a linear layer with bias=True."
            )

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        support = require_support(support, self)
        params = initial_params(model, params)
        num_ids = task.shape[0] if isinstance(task, Tensor) and task.dim() == 1 else None
        names = canonical_names(model)
        weight, bias = (names[f"{self.head}.{name}"] for name in ("weight", "bias"))
        ways = self.ways or num_ids or params[weight].shape[0]
        body = model.get_submodule(self.body)
        features = forward(body, of_module(model, params, self.body), support.x)
        member = (support.y[:, None] == torch.arange(ways, device=support.y.device)).to(features.dtype)
        # A class without examples gives 0 / 0 = NaN, which the check of the loss reports.
        means = (member.T @ features) / member.sum(0)[:, None]
        # Under autocast, features have half precision, which is too low for a head that is adapted further.
        means = means.to(params[weight].dtype)
        params[weight], params[bias] = 2 * means, -means.square().sum(1)
        return params
