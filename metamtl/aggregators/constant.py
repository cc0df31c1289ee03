"""Fixed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .torchjd import TorchJD


class Constant(TorchJD):
    """Fixed weights of the losses. Scale: own, that of the weights.

    Formula: `d = sum_t w_t g_t`.

    Args:
        weights: one weight for each task, in the order of the tasks or by name.

    >>> constant = Constant({"depth": 1.0, "normals": 0.5})
    >>> constant.combine(torch.ones(2), torch.eye(2), ("normals", "depth")).direction
    tensor([0.5000, 1.0000])
    """

    def __init__(self, weights: Tensor | Sequence[float] | Mapping[str, float]) -> None:
        tasks = list(weights) if isinstance(weights, Mapping) else None
        values = torch.as_tensor(list(weights.values()) if isinstance(weights, Mapping) else weights)
        if values.dim() != 1 or not len(values):
            raise ValueError(
                f"Constant: weights has shape {list(values.shape)}; pass one weight for each task, [T]."
            )
        super().__init__("Constant", weights=values if values.is_floating_point() else values.float())
        self.expect(len(values), tasks)
