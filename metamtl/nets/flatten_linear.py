"""A linear classifier on the flattened input, the trivial baseline of every comparison."""

from __future__ import annotations

from torch import Tensor, nn


class FlattenLinear(nn.Module):
    """A linear `head` on the flattened input; with `Prototype`, the nearest class mean of raw pixels."""

    sequence = ("body", "head")

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.features = inputs
        self.body = nn.Flatten()
        self.head = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def flatten_linear(inputs: int, outputs: int) -> FlattenLinear:
    """The trivial baseline: a linear classifier on inputs with `inputs` numbers."""
    return FlattenLinear(inputs, outputs)
