"""A multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them: the last layer is the `head`, the others are the `body`."""

    sequence = ("body", "head")

    def __init__(self, *widths: int) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"mlp{widths} needs at least an input and an output width.")
        self.features = widths[-2]
        self.body = tower(*widths[:-1])
        self.head = nn.Linear(widths[-2], widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def mlp(*widths: int) -> MLP:
    """A multilayer perceptron; `mlp(1, 40, 40, 1)` is the sinusoid net of Finn et al. 2017.

    >>> sum(p.numel() for p in mlp(1, 40, 40, 1).parameters())
    1761
    """
    return MLP(*widths)


def tower(*widths: int) -> nn.Sequential:
    """The body of an `mlp`: linear layers, each followed by ReLU; also an expert or tower of other nets.

    >>> len(tower(4, 8, 8))
    4
    """
    pairs = [(nn.Linear(inputs, outputs), nn.ReLU()) for inputs, outputs in pairwise(widths)]
    return nn.Sequential(*(layer for pair in pairs for layer in pair))
