"""One classification task for each family of classes: an alphabet, a superclass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..metrics import accuracy
from .labeled import LabeledTasks
from .mixture import TaskMixture

Rows = Sequence[Tensor]  # the rows of each class


def class_families(
    images: Tensor, families: Mapping[str, Rows], device: torch.device | str | None = None
) -> TaskMixture:
    """Named tasks with separate images: which class of its family does an image show?

    Args:
        images: all images, `[M, H, W]` or `[M, C, H, W]`, `uint8`; an input is `[n, C, H, W]` in [0, 1].
        families: for each task, the rows of each of its classes.
        device: device of the labels and the episodes.

    >>> images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1)
    >>> rows = {"low": [torch.tensor([0, 1]), torch.tensor([2])], "high": [torch.tensor([5])]}
    >>> class_families(images, rows).outputs
    {'low': 2, 'high': 1}
    """
    return TaskMixture({task: _source(images, task, rows, device) for task, rows in families.items()})


def _source(images: Tensor, task: str, rows: Rows, device: torch.device | str | None) -> LabeledTasks:
    every = torch.cat(list(rows))
    labels = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(part) for part in rows]))

    def pictures(positions: Tensor) -> Tensor:
        drawn = images[every[positions].to(images.device)].to(device)
        drawn = drawn.to(torch.get_default_dtype()).div_(255)
        return drawn.unsqueeze(1) if drawn.ndim == 3 else drawn

    return LabeledTasks(
        pictures,
        {task: labels},
        loss={task: F.cross_entropy},
        metrics={task: {"accuracy": accuracy}},
        outputs={task: len(rows)},
        device=device,
    )
