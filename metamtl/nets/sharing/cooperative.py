"""Cooperative heads: each head also uses the outputs of the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .named import NamedTasks, Outputs, check_names, width_of


class Cooperative(NamedTasks):
    """`output_t = head_t(z) + listen_t([head_s(z) for s != t])` with `z = body(x)`.

    Every head computes a first output, then adds a function of the first outputs of the other heads: the
    idea of PAD-Net (Xu et al. 2018, https://arxiv.org/abs/1805.04409) for any kind of head. `listen_t` is
    linear and initialized to zero, so the net starts as hard sharing.

    Differs from PAD-Net in: 1. the first outputs have no loss; 2. a linear map instead of gated
    convolutions combines them.

    Args:
        body: `x -> [..., features]`, any module.
        features: output width of the body.
        outputs: for each of at least two tasks the width of its head.

    Raises:
        ValueError: there is only one task, or the width of a head is not known.

    >>> model = Cooperative(nn.Linear(4, 8), 8, {"a": 3, "b": 2})
    >>> model(torch.zeros(5, 4), task="a").shape
    torch.Size([5, 3])
    """

    def __init__(self, body: nn.Module, features: int, outputs: Outputs) -> None:
        super().__init__()
        kind = type(self).__name__
        check_names(kind, outputs)
        if len(outputs) < 2:
            raise ValueError(f"{kind} needs at least two tasks, found {list(outputs)}; use NamedHeads.")
        widths = {name: width_of(kind, outputs, name) for name in outputs}
        self.body = body
        self.add_heads(outputs, features)
        self.listen = nn.ModuleDict(
            {
                name: nn.Linear(sum(widths.values()) - width, width, bias=False)
                for name, width in widths.items()
            }
        )
        for listen in self.listen.parameters():
            nn.init.zeros_(listen)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        features = self.body(*inputs, **keywords)
        first = {name: self.head(name, features) for name in self.heads}
        return {
            name: first[name]
            + self.listen[name](torch.cat([first[other] for other in first if other != name], -1))
            for name in task_names
        }
