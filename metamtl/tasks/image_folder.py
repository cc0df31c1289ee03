"""Few-shot tasks from a folder of images, which are read when they are drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..datasets.class_splits import Splits, class_splits
from ..datasets.files import SPLITS, check_split
from ..datasets.image_files import Augment, Mode, check_images, class_files, pillow, read_image
from ..losses import Loss
from ..metrics import Metric
from .lazy import LazyFewShot

Check = Literal["headers", "full"]
_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


class ImageFolder:
    """N-way K-shot tasks from a folder with one subfolder of images per class, as large as the disk.

    Images may have any size and mode; each is turned upright, converted to `mode`, cropped to the largest
    square in its center and resized to `size` x `size`, with values in [0, 1]. They are read when they are
    drawn. Pass the tasks to `EpisodeLoader` to read ahead in several processes.

    On first use, the folder is listed and the header of every image is read, so that damaged files are
    reported together before the training starts.

    Args:
        folder: `<folder>/<class>/.../<image>`; hidden files are left out. Classes are sorted by name.
        ways, shots, queries: as in `FewShot`.
        size: height and width of the images.
        splits: the training, validation and test classes. Three fractions divide the classes at random; a
            mapping `{"train": [...], "validation": [...], "test": [...]}` or the path of a JSON file with
            one lists their names; `"mini_imagenet"` is the split of Ravi and Larochelle (folders named by
            ImageNet ids); `"folders"` means that the folder has the subfolders `train`, `validation` (or
            `val`) and `test`, each with one subfolder per class. Classes that are not listed are not used.
        seed: seed of the division by fractions.
        mode: `"RGB"` or `"L"` (grayscale).
        augment: a function of a Pillow image (in `mode`, before it is resized) that returns a Pillow image,
            such as a transform of torchvision; applied to training tasks only. During the call, the state
            of the global generators of torch, Python and NumPy is determined by the generator that is
            passed to `sample`.
        check: `"headers"`, or `"full"` to decode every image on first use.
        device: device of the episodes.
        options: `balance` and `tasks_per_class_set` of `FewShot`.

    All errors are raised on first use.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no class, an empty class, damaged files (all are named), a split that does not fit the
            classes, a class with fewer than K + Q images.
        ImportError: Pillow is missing.

    >>> birds = ImageFolder("birds", ways=5, shots=1, splits=(0.6, 0.2, 0.2))
    >>> episode = birds.split("train").sample(4, torch.Generator().manual_seed(0))  # doctest: +SKIP
    >>> episode.support.x.shape  # doctest: +SKIP
    torch.Size([4, 5, 3, 84, 84])
    """

    loss: Loss = staticmethod(LazyFewShot.loss)
    metrics: ClassVar[Mapping[str, Metric]] = LazyFewShot.metrics

    def __init__(
        self,
        folder: str | os.PathLike[str],
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        *,
        size: int = 84,
        splits: Splits = (0.64, 0.16, 0.2),
        seed: int = 0,
        mode: Mode = "RGB",
        augment: Augment | None = None,
        check: Check = "headers",
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r} is not 'RGB' or 'L'.")
        if check not in get_args(Check):
            raise ValueError(f"check={check!r} is not 'headers' or 'full'.")
        if size < 1:
            raise ValueError(f"size={size}: images need at least one pixel.")
        self.folder = Path(folder).expanduser()
        self.ways, self.shots, self.queries, self.size, self.mode = ways, shots, queries, size, mode
        self.splits, self.seed, self.augment, self.check, self.device = splits, seed, augment, check, device
        self.options = options

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The files of each class that is in a split."""
        pillow()
        files: dict[str, list[Path]] = {}
        for classes in self._folders.values():
            files |= classes
        used = sorted(name for names in self.classes.values() for name in names)
        check_images((path for name in used for path in files[name]), full=self.check == "full")
        return {name: files[name] for name in used}

    @cached_property
    def _folders(self) -> dict[str, dict[str, list[Path]]]:
        """The classes and their files: of each split for `splits="folders"`, else under one key."""
        if self.splits != "folders":
            return {"": class_files(self.folder)}
        found = {}
        for split, names in _FOLDERS.items():
            paths = [self.folder / name for name in names if (self.folder / name).is_dir()]
            if not paths:
                raise FileNotFoundError(
                    f"{self.folder} has no subfolder {' or '.join(names)}, which splits='folders' needs."
                )
            found[split] = class_files(paths[0])
        return found

    @cached_property
    def classes(self) -> dict[str, list[str]]:
        """The class names of each split."""
        names = sorted({name for classes in self._folders.values() for name in classes})
        splits = self.splits
        if splits == "folders":
            splits = {split: list(self._folders[split]) for split in SPLITS}
        return class_splits(splits, names, self.seed, str(self.folder))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes of the three splits, by id; sorted."""
        return tuple(self._files)

    def split(self, name: str) -> LazyFewShot:
        """The tasks of `"train"`, `"validation"` or `"test"`.

        Raises:
            ValueError, FileNotFoundError, ImportError: see the class.
        """
        check_split(name)
        paths = [path for files in self._files.values() for path in files]
        labels = [label for label, files in self._files.items() for _ in files]
        augment = self.augment if name == "train" else None
        return LazyFewShot(
            _Reader(paths, self.size, self.mode, augment),
            labels,
            ways=self.ways,
            shots=self.shots,
            queries=self.queries,
            classes=self.classes[name],
            class_names=self.class_names,
            device=self.device,
            **self.options,
        )


class _Reader:
    """Reads the image at a position; worker processes receive it as a whole."""

    def __init__(self, paths: list[Path], size: int, mode: Mode, augment: Augment | None) -> None:
        self.paths, self.size, self.mode, self.augment = paths, size, mode, augment

    def __call__(self, position: int, seed: int) -> Tensor:
        return read_image(self.paths[position], self.size, self.mode, self.augment, seed)
