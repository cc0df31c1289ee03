"""Gates and the weighted sum, shared by all mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Gate = Callable[[int], nn.Module]  # gate(n) builds a module that maps the inputs to n numbers


class Constant(nn.Module):
    """A gate that ignores its input: n learned numbers, `[n]`.

    >>> Constant(3)(torch.zeros(5, 4)).shape
    torch.Size([3])
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        # Small and not all equal, as in the code of the authors of DSelect-k.
        self.logits = nn.Parameter(torch.empty(numbers).uniform_(-0.01, 0.01))

    def forward(self, *inputs: Any, **keywords: Any) -> Tensor:
        return self.logits


def answers(net: Any, task_names: Sequence[str], *inputs: Any, **keywords: Any) -> dict[str, Any]:
    """For each task, mix the outputs of `net.experts` with `net.weights`, and apply the head."""
    outputs = [expert(*inputs, **keywords) for expert in net.experts]
    return {
        name: net.head(name, mixed(outputs, net.weights(name, *inputs, **keywords))) for name in task_names
    }


def mixed(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """`sum_e weights[..., e] * outputs[e]`; `weights` is `[E]`, `[B, E]`, or has more leading axes.

    >>> mixed([torch.ones(2, 3), torch.zeros(2, 3)], torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    tensor([[0.2500, 0.2500, 0.2500],
            [1.0000, 1.0000, 1.0000]])
    """
    shape, lead = outputs[0].shape, weights.shape[:-1]
    if any(output.shape != shape for output in outputs):
        raise ValueError(f"experts differ in shape: {[list(output.shape) for output in outputs]}.")
    if weights.shape[-1] != len(outputs) or lead != shape[: len(lead)]:
        raise ValueError(
            f"a gate returned weights of shape {list(weights.shape)} for {len(outputs)} experts that return"
            f" {list(shape)}; it must return {[*shape[: len(lead)], len(outputs)]}."
        )
    factors = weights.reshape(*lead, *(1,) * (len(shape) - len(lead)), len(outputs))
    return (torch.stack(list(outputs), -1) * factors).sum(-1)
