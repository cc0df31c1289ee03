"""A head written from class means: ProtoNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params, canonical_names, forward, of_module
from ..losses import Loss
from .base import Adapter, initial_params, require_support


class Prototype(Adapter):
    """A linear head whose scores are minus the squared distances to the class means.

    With `c_n` the mean of the body's features over the support examples of class n:
    `W_n = 2 c_n`, `b_n = -|c_n|^2`, so that `W_n f + b_n = |f|^2 - |f - c_n|^2`, and the softmax is that
    of minus the distances. Snell, Swersky, Zemel 2017, https://arxiv.org/abs/1703.05175.

    Args:
        ways: number of classes N; where None, as many as the task has class ids (so that training may
            have more ways than the test), or else as the head has outputs.
        body: name of the module that makes features `[S, F]`.
        head: name of the linear head, with bias, that is applied to them.

    >>> from metamtl import nets
    >>> model = nets.mlp(2, 8, 3)
    >>> support = Batch(torch.randn(6, 2), torch.arange(3).repeat(2))
    >>> Prototype()(model, support, nn.functional.cross_entropy)["head.weight"].shape
    torch.Size([3, 8])
    """

    def __init__(self, ways: int | None = None, body: str = "body", head: str = "head") -> None:
        super().__init__()
        self.ways, self.body, self.head = ways, body, head

    @property
    def gradient_evaluations(self) -> int:
        return 1  # the outer gradient goes back through the support features

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
        listed = task.shape[0] if isinstance(task, Tensor) and task.dim() == 1 else None
        names = canonical_names(model)
        weight, bias = (names[f"{self.head}.{name}"] for name in ("weight", "bias"))
        ways = self.ways or listed or params[weight].shape[0]
        body = model.get_submodule(self.body)
        features = forward(body, of_module(model, params, self.body), support.x)
        member = (support.y[:, None] == torch.arange(ways, device=support.y.device)).to(features.dtype)
        # A class without an example divides by zero: a NaN that the loss check names, not a silent zero.
        means = (member.T @ features) / member.sum(0)[:, None]
        # Under autocast features are in half precision; a head that is adapted further has too few digits.
        means = means.to(params[weight].dtype)
        params[weight], params[bias] = 2 * means, -means.square().sum(1)
        return params
