"""A net, and losses, an adapter and a rule with attributes that can be changed between calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import adapters, rules


class Net(nn.Module):
    """A smooth net of one input, or of two, or of one and options."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
            self.other, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(
        self,
        x: Tensor,
        temperature: float = 1.0,
        mode: str = "sin",
        *,
        second: Tensor | None = None,
        third: Tensor | None = None,
    ) -> Tensor:
        h = (torch.sin if mode == "sin" else torch.cos)(self.body(x))
        for scale, more in ((1.0, second), (-0.5, third)):
            h = h if more is None else h + scale * torch.tanh(self.other(more))
        return temperature * self.head(h) + 0 * self.other(x).sum()


class Weighted:
    """A loss that is an object with an attribute."""

    def __init__(self) -> None:
        self.beta = 0.9

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        return self.beta * output.square().mean() + F.mse_loss(output, y)


class WeightedModule(nn.Module):
    """A loss that is a module with a buffer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.9, 1.1], dtype=torch.float64))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return (self.scale * (output - y).square()).mean()


class Trainer:
    """A loss that is a method."""

    def __init__(self) -> None:
        self.beta = 0.9

    def criterion(self, output: Tensor, y: Tensor) -> Tensor:
        return self.beta * output.square().mean() + F.mse_loss(output, y)


class Shrink(adapters.Adapter):
    """An adapter of the user's, with an attribute that its repr does not show."""

    factor = 0.9

    def forward(self, model: Any, support: Any, loss: Any, *, params: Any = None, task: Any = None) -> Any:
        start = dict(model.named_parameters()) if params is None else params
        return {name: self.factor * param for name, param in start.items()}


class Clipped(rules.Descent):
    """A rule of the user's."""

    factor = 0.9

    def update(self, params: Any, gradients: Any, *rest: Any) -> Any:
        return super().update(params, {n: torch.tanh(self.factor * g) for n, g in gradients.items()}, *rest)


def scaled(output: Tensor, y: Tensor, scale: float) -> Tensor:
    return scale * output.square().mean() + F.mse_loss(output, y)
