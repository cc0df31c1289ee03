"""The query loss after every inner step, and the annealing of its weights: MAML++."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Adaptation, Reads


@dataclass(frozen=True)
class MultiStep:
    """`sum_k weights[k - 1] L_query(phi_k)`, the query losses after each of the K inner steps.

    The multi-step loss of MAML++, Antoniou, Edwards, Storkey 2019, https://arxiv.org/abs/1810.09502.

    Args:
        weights: the weight of each inner step, as `annealed_weights` computes them.

    Raises:
        ValueError: on a call: the number of weights is not the number of inner steps.

    >>> MultiStep(annealed_weights(5, 0, 100)).weights
    (0.2, 0.2, 0.2, 0.2, 0.2)
    """

    reads: ClassVar[Reads] = "stages"

    weights: Sequence[float]

    def __call__(self, task: Adaptation) -> Tensor:
        if len(task.stages) - 1 != len(self.weights):
            raise ValueError(
                f"MultiStep has {len(self.weights)} weights, but the adapter has"
                f" {max(len(task.stages) - 1, 0)} inner steps; pass one weight for each step."
            )
        *earlier, last = self.weights
        losses = [w * task.measure(p, task.query) for w, p in zip(earlier, task.stages[1:]) if w]
        return torch.stack([*losses, last * task.query_loss]).sum()


def annealed_weights(inner_steps: int, step: int, until: int) -> tuple[float, ...]:
    """The weights of the query losses after each inner step, as in the code of MAML++.

    They are equal at outer step 0 and change linearly. From outer step `until` on, the weights of all inner
    steps except the last one have reached (or passed on the way) their minimum of `0.03 / K`.

    >>> [round(w, 3) for w in annealed_weights(5, 100, 100)]
    [0.006, 0.006, 0.006, 0.006, 0.976]
    """
    k = inner_steps
    if k < 1 or until < 1:
        raise ValueError(f"inner_steps={k} and until={until} must be at least 1.")
    smallest, decay = 0.03 / k, min(step / until, 1.0) / k
    others = max(1 / k - decay, smallest)
    last = min(1 / k + (k - 1) * decay, 1 - (k - 1) * smallest)
    return (*[others] * (k - 1), last)
