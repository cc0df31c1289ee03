"""No net at all: the input itself as features."""

from __future__ import annotations

from torch import Tensor, nn


class FlattenLinear(nn.Module):
    """Flattens its input, under a linear `head`: with `Prototype`, the nearest class mean on raw pixels."""

    sequence = ("body", "head")

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.features = inputs
        self.body = nn.Flatten()
        self.head = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def flatten_linear(inputs: int, outputs: int) -> FlattenLinear:
    """The trivial model of `inputs` numbers: the row that every comparison carries."""
    return FlattenLinear(inputs, outputs)
