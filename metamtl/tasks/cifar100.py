"""CIFAR-FS and FC100: the two few-shot benchmarks made from CIFAR-100."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..datasets.cifar100 import PER_CLASS, load
from ..datasets.files import check_split, data_folder, split_file
from ..losses import Loss
from ..metrics import Metric
from .few_shot import FewShot, Rotations


class _CIFAR100:
    """N-way K-shot tasks of CIFAR-100; a benchmark is a split of its 100 classes."""

    loss: Loss = staticmethod(FewShot.loss)
    metrics: ClassVar[Mapping[str, Metric]] = FewShot.metrics
    _split_file: ClassVar[str]

    def __init__(
        self,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        *,
        rotations: Rotations = "none",
        data_dir: str | os.PathLike[str] | None = None,
        download: bool = False,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        if shots + queries > PER_CLASS:
            raise ValueError(
                f"{shots} shots + {queries} queries need {shots + queries} images per class, but CIFAR-100"
                f" has {PER_CLASS}; lower shots or queries."
            )
        self.ways, self.shots, self.queries, self.rotations = ways, shots, queries, rotations
        self.data_dir, self.download, self.device, self.options = data_dir, download, device, options

    @cached_property
    def _data(self) -> tuple[np.ndarray, tuple[str, ...]]:
        return load(data_folder("cifar100", self.data_dir), download=self.download)

    @cached_property
    def images(self) -> Tensor:
        """Images `[60000, 3, 32, 32]`, `uint8`, sorted by class, 600 per class."""
        return torch.from_numpy(self._data[0]).to(self.device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the 100 classes, by id."""
        return self._data[1]

    def split(self, name: str) -> FewShot:
        """The tasks of `"train"`, `"validation"` or `"test"`; all splits share the images.

        Raises:
            ValueError: an unknown split, or invalid options of `FewShot`.
        """
        check_split(name)
        row = {label: i for i, label in enumerate(self.class_names)}
        return FewShot(
            self.images,
            np.repeat(np.arange(len(row)), len(self.images) // len(row)),
            ways=self.ways,
            shots=self.shots,
            queries=self.queries,
            classes=[row[label] for label in split_file(self._split_file)[name]],
            rotations=self.rotations,
            class_names=self.class_names,
            **self.options,
        )


class CIFARFS(_CIFAR100):
    """CIFAR-FS: 64 training, 16 validation and 20 test classes of CIFAR-100, chosen at random.

    Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers. ICLR 2019,
    https://arxiv.org/abs/1805.08136. Images of 32x32 pixels in color, values in [0, 1]. All 600 images of a
    class, official training and test images, belong to one split.

    The data is read on first use from `<data_dir>/cifar100`: the official archive
    `cifar-100-binary.tar.gz`, which `download=True` downloads, or one lossless sheet `<class>.webp` per
    class (see `data/README.md`). An id in `Episode.task` is an index into `class_names`, which is sorted.

    Args:
        ways, shots, queries, rotations, device: as in `FewShot`.
        data_dir: the folder that contains `cifar100/`; if None, the environment variable `METAMTL_DATA`,
            or else the user's cache.
        download: download the archive if it is missing.
        options: `balance` and `tasks_per_class_set` of `FewShot`.

    Raises:
        ValueError: unknown options, more than the 600 images of a class; on first use, a damaged file.
        FileNotFoundError: on first use, the data is missing and `download` is False.
        ConnectionError: on first use, the download failed.

    >>> cifar = CIFARFS(ways=5, shots=1, queries=15, download=True)
    >>> episode = cifar.split("train").sample(4, torch.Generator().manual_seed(0))  # doctest: +SKIP
    >>> episode.support.x.shape  # doctest: +SKIP
    torch.Size([4, 5, 3, 32, 32])
    """

    _split_file = "cifar_fs"


class FC100(_CIFAR100):
    """FC100: 60 training, 20 validation and 20 test classes of CIFAR-100, split by superclass.

    Oreshkin, Rodriguez Lopez, Lacoste: TADAM. NeurIPS 2018, https://arxiv.org/abs/1805.10123. The 12, 4 and
    4 superclasses of the splits are disjoint, so the test classes differ more from the training classes
    than in `CIFARFS`. Data, arguments and errors are those of `CIFARFS`.

    >>> fc100 = FC100(ways=5, shots=5, queries=15, download=True)
    >>> episode = fc100.split("test").sample(4, torch.Generator().manual_seed(0))  # doctest: +SKIP
    >>> episode.support.x.shape  # doctest: +SKIP
    torch.Size([4, 25, 3, 32, 32])
    """

    _split_file = "fc100"
