"""CIFAR-100 as multi-task classification: one task per superclass."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..datasets.cifar100 import PER_CLASS, SUPERCLASSES, load
from ..datasets.files import SPLITS, check_split, data_folder
from ..datasets.preprocess import chosen
from .class_families import class_families
from .mixture import TaskMixture

BOUNDS = (0, 450, 500, PER_CLASS)  # of the images of a class in the three splits


class CIFARSuperclasses:
    """Which class of its superclass is it? 20 tasks of 5 classes, with one head for each superclass.

    Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html; the superclasses as the tasks of
    multi-task learning: Rosenbaum, Klinger, Riemer, https://arxiv.org/abs/1711.01239. Images of 32x32
    pixels in color, values in [0, 1]. The official test images are the test set; of the 500 training images
    of each class, the last 50 are the validation set.

    Args:
        tasks: the superclasses to keep, such as `("fish", "people")`; if None, all.
        data_dir, download: as in `CIFARFS`.
        device: device of the images and the episodes.

    Raises:
        ValueError: an unknown superclass; a damaged file, on first use.
        FileNotFoundError, ConnectionError: as in `CIFARFS`, on first use.

    >>> superclasses = CIFARSuperclasses(tasks=("fish", "people"), download=True)
    >>> episodes = superclasses.split("train").sample(32, torch.Generator())  # doctest: +SKIP
    >>> episodes["fish"].query.x.shape, episodes["fish"].ways  # doctest: +SKIP
    (torch.Size([32, 3, 32, 32]), 5)
    """

    protocol: ClassVar[str] = (
        "CIFAR-100 with the official test images, validation from the last 50 training images of each class"
    )

    def __init__(
        self,
        *,
        tasks: Iterable[str] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        download: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.tasks = chosen(tasks, tuple(SUPERCLASSES))
        self.data_dir, self.download, self.device = data_dir, download, device

    def split(self, name: str) -> TaskMixture:
        """The images of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        index = SPLITS.index(name)
        images = torch.arange(BOUNDS[index], BOUNDS[index + 1])
        rows = {
            task: [self._labels.index(label) * PER_CLASS + images for label in SUPERCLASSES[task]]
            for task in self.tasks
        }
        return class_families(self._images, rows, self.device)

    @property
    def _labels(self) -> list[str]:
        return [label for task in self.tasks for label in SUPERCLASSES[task]]

    @cached_property
    def _images(self) -> Tensor:
        """The images of the classes in `_labels`, without those of the other tasks."""
        images, names = load(data_folder("cifar100", self.data_dir), download=self.download)
        by_class = images.reshape(len(names), PER_CLASS, *images.shape[1:])
        kept = by_class[[names.index(label) for label in self._labels]]
        return torch.from_numpy(kept).flatten(0, 1).to(self.device)
