"""A shared bottom followed by any net for named tasks."""

from __future__ import annotations

from typing import Any

from torch import nn

from .named import apart


class SharedBottom(nn.Module):
    """`top(bottom(x), task=...)`: a bottom that all tasks share, followed by any net for named tasks.

    Use it if gates, towers or stages need vectors, but the input is text, an image, several inputs or
    keywords: the bottom embeds the input once. The bottom may be a pretrained module.

    >>> import torch
    >>> from metamtl import nets
    >>> top = nets.NamedHeads(nn.Linear(6, 8), features=8, outputs={"topic": 4, "tone": 2})
    >>> model = SharedBottom(nn.EmbeddingBag(100, 6), top)
    >>> model(torch.zeros(5, 7, dtype=torch.long), task="tone").shape
    torch.Size([5, 2])
    """

    def __init__(self, bottom: nn.Module, top: nn.Module) -> None:
        super().__init__()
        self.bottom, self.top = bottom, top

    def forward(self, *inputs: Any, task: str | tuple[str, ...] | None = None, **keywords: Any) -> Any:
        inputs, task = apart(inputs, task)
        return self.top(self.bottom(*inputs, **keywords), task=task)
