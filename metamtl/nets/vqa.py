"""A picture and a question in one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from .sharing.named import NamedTasks
from .text import Sentence, TextEncoder


class VQA(NamedTasks):
    """An image encoder for all tasks, and a question encoder for those that answer a question.

    `image` `[B, 3, 64, 64]`, `tokens`, `mask` `[B, L]`. With v the picture's features and q the question's,
    a task that answers a question gets `v * tanh(q)`, so that the question chooses among the features; any
    other gets v, and the question encoder gets no gradient from it.

    Args:
        words: rows of the question's embedding.
        outputs: for each task the width of its head.
        asks: the tasks that answer a question.
        width: features of picture and question.
    """

    def __init__(
        self, words: int, outputs: Mapping[str, int], asks: Iterable[str] = ("answer",), width: int = 64
    ) -> None:
        super().__init__()
        self.asks = frozenset(asks)
        self.image = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(16 * 16 * 16, width), nn.ReLU()),
        )
        if self.asks & set(outputs):
            self.question = Sentence(TextEncoder(words, width=width, layers=1))
        self.add_heads(outputs, width)

    def answer(  # type: ignore[override]
        self, wanted: tuple[str, ...], image: Tensor, tokens: Tensor, mask: Tensor
    ) -> dict[str, Any]:
        seen = self.image(image - 0.5)  # the pictures are mostly paper, of value 1
        asked = seen * self.question(tokens, mask).tanh() if self.asks & set(wanted) else seen
        return {task: self.head(task, asked if task in self.asks else seen) for task in wanted}


def vqa(
    words: int, outputs: Mapping[str, int], *, asks: Iterable[str] = ("answer",), width: int = 64
) -> VQA:
    """The net for `tasks.EasyVQA`.

    >>> import torch
    >>> x = {"image": torch.zeros(2, 3, 64, 64), "tokens": torch.ones(2, 5).long()}
    >>> answers = vqa(20, {"answer": 13, "shape": 3})(**x, mask=torch.ones(2, 5).bool())
    >>> {task: tuple(out.shape) for task, out in answers.items()}
    {'answer': (2, 13), 'shape': (2, 3)}
    """
    return VQA(words, outputs, asks, width)
