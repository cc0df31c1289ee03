"""Visual question answering: an image and a question in one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .sharing.named import NamedTasks
from .text import Sentence, TextEncoder


class VQA(NamedTasks):
    """An image encoder for all tasks, and a question encoder for the tasks that answer a question.

    `image` is `[B, 3, 64, 64]`, `tokens` and `mask` are `[B, L]`. The image encoder has three convolutions
    of stride 2 and one of stride 1, and takes the maximum of each feature over the positions, because no
    label depends on the position of the shape. With v the features of the image and q those of the
    question, in (-1, 1), the head of a task that answers a question receives `relu(W [v * q, q] + b)`, so
    that the question selects features. The heads of other tasks receive v, so that the question encoder
    gets no gradient from them.

    Args:
        words: rows of the question embedding.
        outputs: the width of the head of each task.
        asks: the tasks that answer a question.
        width: number of features of image and question.
    """

    def __init__(
        self, words: int, outputs: Mapping[str, int], asks: Iterable[str] = ("answer",), width: int = 64
    ) -> None:
        super().__init__()
        self.asks = frozenset(asks)
        self.image = nn.Sequential(
            *(nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(64, width, 3, padding=1), nn.ReLU()),
        )
        if self.asks & set(outputs):
            self.question = Sentence(TextEncoder(words, width=width, layers=1))
            self.gate = nn.Linear(width, width)
            self.fuse = nn.Linear(2 * width, width)
        self.add_heads(outputs, width)

    def answer(  # type: ignore[override]
        self, task_names: tuple[str, ...], image: Tensor, tokens: Tensor, mask: Tensor
    ) -> dict[str, Any]:
        features = self.image(1 - image).amax((-2, -1))  # the background is white, so it becomes zero
        fused = features
        if self.asks & set(task_names):
            question = self.gate(self.question(tokens, mask)).tanh()
            fused = self.fuse(torch.cat([features * question, question], -1)).relu()
        return {task: self.head(task, fused if task in self.asks else features) for task in task_names}


def vqa(
    words: int, outputs: Mapping[str, int], *, asks: Iterable[str] = ("answer",), width: int = 64
) -> VQA:
    """The model for `tasks.EasyVQA`.

    >>> x = {"image": torch.zeros(2, 3, 64, 64), "tokens": torch.ones(2, 5).long()}
    >>> answers = vqa(20, {"answer": 13, "shape": 3})(**x, mask=torch.ones(2, 5).bool())
    >>> {task: tuple(out.shape) for task, out in answers.items()}
    {'answer': (2, 13), 'shape': (2, 3)}
    """
    return VQA(words, outputs, asks, width)
