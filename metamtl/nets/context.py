"""Context parameters: a vector that every example of a task shares."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .mlp import tower


class Context(nn.Module):
    """Append a context vector to every example: `[B, D] -> [B, D + size]`.

    Zintgraf et al. 2019 (CAVIA), https://arxiv.org/abs/1810.03642. The context starts at zero, and
    `recipes.cavia` adapts it to each task. The layer may be the input of a net or any hidden layer.

    >>> Context(3)(torch.ones(2, 1))
    tensor([[1., 0., 0., 0.],
            [1., 0., 0., 0.]], grad_fn=<CatBackward0>)
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.context.expand(len(x), -1)], 1)


def context_mlp(*widths: int, context: int) -> nn.Sequential:
    """A multilayer perceptron whose input is extended by a context vector of `context` numbers.

    Its parts are `context`, `body` and `head`, as in `nets.mlp`.

    >>> context_mlp(1, 40, 40, 1, context=5)(torch.zeros(2, 1)).shape
    torch.Size([2, 1])
    """
    if len(widths) < 2:
        raise ValueError(f"context_mlp{widths} needs at least an input and an output width.")
    hidden = (widths[0] + context, *widths[1:-1])
    head = nn.Linear(hidden[-1], widths[-1])
    return nn.Sequential(OrderedDict(context=Context(context), body=tower(*hidden), head=head))
