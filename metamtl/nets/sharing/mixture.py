"""What the mixtures of experts have in common: gates, and the weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Gate = Callable[[int], nn.Module]  # gate(n) makes a module from the inputs to n numbers


class Constant(nn.Module):
    """A gate that does not look at its input: n learned numbers, `[n]`.

    >>> Constant(3)(torch.zeros(5, 4)).shape
    torch.Size([3])
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        # Small and not all equal, as the authors of DSelect-k start theirs.
        self.logits = nn.Parameter(torch.empty(numbers).uniform_(-0.01, 0.01))

    def forward(self, *inputs: Any, **keywords: Any) -> Tensor:
        return self.logits


def answers(net: Any, wanted: Sequence[str], *inputs: Any, **keywords: Any) -> dict[str, Any]:
    """For each wanted task `net.experts` mixed by its `net.weights`, through its head."""
    found = [expert(*inputs, **keywords) for expert in net.experts]
    return {name: net.head(name, mixed(found, net.weights(name, *inputs, **keywords))) for name in wanted}


def mixed(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """`sum_e weights[..., e] * outputs[e]`; `weights` is `[E]`, `[B, E]`, or has more of the leading axes.

    >>> mixed([torch.ones(2, 3), torch.zeros(2, 3)], torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    tensor([[0.2500, 0.2500, 0.2500],
            [1.0000, 1.0000, 1.0000]])
    """
    shape, lead = outputs[0].shape, weights.shape[:-1]
    if any(output.shape != shape for output in outputs):
        raise ValueError(f"experts differ in shape: {[list(output.shape) for output in outputs]}.")
    if weights.shape[-1] != len(outputs) or lead != shape[: len(lead)]:
        raise ValueError(
            f"a gate gave weights of shape {list(weights.shape)} for {len(outputs)} experts that return"
            f" {list(shape)}; it must give {[*shape[: len(lead)], len(outputs)]}."
        )
    spread = weights.reshape(*lead, *(1,) * (len(shape) - len(lead)), len(outputs))
    return (torch.stack(list(outputs), -1) * spread).sum(-1)
