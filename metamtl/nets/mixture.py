"""What the mixtures of experts have in common: gates, and the weighted sum."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .named import NamedTasks, Outputs, check_names, distinct

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


class Mixture(NamedTasks):
    """Experts that all tasks share, mixed for each task by what its gate says; a subclass says how."""

    def __init__(
        self, experts: Sequence[nn.Module], gate: Gate, numbers: int, features: int, outputs: Outputs
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        check_names(kind, outputs)
        if not experts:
            raise ValueError(f"{kind} needs at least one expert.")
        self.experts = nn.ModuleList(distinct(experts, f"the experts of {kind}"))
        gates = distinct([gate(numbers) for _ in outputs], f"the gates of {kind}")
        self.gates = nn.ModuleDict(dict(zip(outputs, gates)))
        self.add_heads(outputs, features)

    def answer(self, wanted: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        found = [expert(*inputs, **keywords) for expert in self.experts]
        return {
            name: self.head(name, mixed(found, self.weights(name, *inputs, **keywords))) for name in wanted
        }

    @abstractmethod
    def weights(self, task: str, *inputs: Any, **keywords: Any) -> Tensor:
        """How much of each expert the task takes, `[..., E]`; they sum to 1."""


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
