"""Normalisation by the batch's own statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of the batch at hand, at training and at test.

    `y = (x - mean) / sqrt(var + eps) * weight + bias`, mean and biased variance over all axes but the
    channels', axis 1. There are no running statistics, so support and query set are each normalised by
    themselves (transductive, as in the MAML authors' code), and the module is a pure function: any
    engine runs it, in any order of differentiation.

    The formula is written out because the fused kernel loses three digits in second order under vmap.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = (var + self.eps).rsqrt() * self.weight.view(shape)
        return (x - mean) * scale + self.bias.view(shape)


def batchnorm_statistics(model: nn.Module) -> str:
    """Where the model's BatchNorms take their statistics from: what a result must state.

    >>> batchnorm_statistics(nn.Sequential(nn.Linear(1, 1), BatchNorm(1)))
    'transductive: support and query batch, each its own'
    """
    kinds = set()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            kinds.add("transductive: support and query batch, each its own")
        elif isinstance(module, _BatchNorm):
            stored = module.running_mean is not None and not module.training
            kinds.add(
                "stored running statistics"
                if stored
                else "transductive: support and query batch, each its own"
            )
    return "; ".join(sorted(kinds)) or "no BatchNorm"
