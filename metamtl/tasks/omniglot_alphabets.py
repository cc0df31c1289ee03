"""Omniglot as multi-task classification: one task per alphabet."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..datasets.files import SPLITS, check_split, data_folder, split_file
from ..datasets.omniglot import DRAWERS, Arrays, load
from ..datasets.preprocess import chosen
from .class_families import class_families
from .mixture import TaskMixture

BOUNDS = (0, 12, 16, DRAWERS)  # of the drawers in the three splits


class OmniglotAlphabets:
    """Which character of its alphabet is it? 50 tasks of 14 to 55 classes, with one head for each alphabet.

    Lake, Salakhutdinov, Tenenbaum, Science 350 (2015); the alphabets as the tasks of multi-task learning:
    Yang, Hospedales, https://arxiv.org/abs/1605.06391. Images of 28x28 pixels, ink = 1. All splits have all
    characters: of the twenty drawings of each, those of the first 12 people are the training set, those of
    the next 4 the validation set, those of the last 4 the test set. Differs from the paper in: 1. the split
    is by person, not at random; 2. images have 28x28 pixels instead of 105x105.

    Args:
        tasks: the alphabets to keep, such as `("Greek", "Latin")`; if None, all.
        data_dir, download: as in `Omniglot`.
        device: device of the images and the episodes.

    Raises:
        ValueError: an unknown alphabet; a damaged file, on first use.
        FileNotFoundError, ConnectionError: as in `Omniglot`, on first use.

    >>> alphabets = OmniglotAlphabets(tasks=("Greek", "Latin"), download=True)
    >>> episodes = alphabets.split("train").sample(32, torch.Generator())  # doctest: +SKIP
    >>> episodes["Greek"].query.x.shape, episodes["Greek"].ways  # doctest: +SKIP
    (torch.Size([32, 1, 28, 28]), 24)
    """

    protocol: ClassVar[str] = (
        "omniglot_28_u8.npz; of the drawings of every character 12 for training, 4 for validation and 4 for"
        " the test, by person"
    )

    def __init__(
        self,
        *,
        tasks: Iterable[str] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        download: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        split = split_file("omniglot_alphabets")
        known = sorted({name.partition("/")[0] for part in SPLITS for name in split[part]})
        self.tasks = chosen(tasks, known)
        self.data_dir, self.download, self.device = data_dir, download, device

    def split(self, name: str) -> TaskMixture:
        """The drawings of the people of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        index = SPLITS.index(name)
        drawers = torch.arange(BOUNDS[index], BOUNDS[index + 1])
        characters: dict[str, list[Tensor]] = {task: [] for task in self.tasks}
        for character, path in enumerate(self._arrays["character_names"].tolist()):
            alphabet = path.partition("/")[0]
            if alphabet in characters:
                characters[alphabet].append(character * DRAWERS + drawers)
        return class_families(self._images, characters, self.device)

    @cached_property
    def _arrays(self) -> Arrays:
        return load(data_folder("omniglot", self.data_dir), download=self.download)

    @cached_property
    def _images(self) -> Tensor:
        return torch.as_tensor(self._arrays["images"]).to(self.device)
