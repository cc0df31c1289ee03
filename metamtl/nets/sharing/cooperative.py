"""Cooperative heads: each sees what the others would answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .named import NamedTasks, Outputs, check_names, width_of


class Cooperative(NamedTasks):
    """`output_t = head_t(z) + listen_t([head_s(z) for s != t])` with `z = body(x)`.

    Every head answers first, then each adds what it makes of the others' first answers: the idea of
    PAD-Net (Xu et al. 2018, https://arxiv.org/abs/1805.04409) for heads of any kind. `listen_t` is linear
    and zero at the start, where the net is hard sharing.

    Differs from PAD-Net in: 1. the first answers have no loss of their own; 2. they are passed on by a
    linear map rather than by gated convolutions.

    Args:
        body: `x -> [..., features]`, any module.
        features: width of what the body returns.
        outputs: for each of at least two tasks the width of its head.

    Raises:
        ValueError: a single task, or a head whose width is not known.

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

    def answer(self, wanted: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        features = self.body(*inputs, **keywords)
        first = {name: self.head(name, features) for name in self.heads}
        return {
            name: first[name]
            + self.listen[name](torch.cat([first[other] for other in first if other != name], -1))
            for name in wanted
        }
