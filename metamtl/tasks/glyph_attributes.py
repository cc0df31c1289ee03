"""Heterogeneous tasks on one image: the script, case, weight, slant and family of a letter."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets.glyph_drawing import CASES, FAMILIES, SLANTS, WEIGHTS
from ..episode import Batch, Episode
from ..losses import Loss
from ..metrics import Metric, accuracy
from .glyphs import SPLITS, Glyphs, check_split

TASKS = ("script", "case", "weight", "slant", "family")


class GlyphAttributes:
    """Five classification tasks on shared images, the letters of the training scripts of `Glyphs`.

    | task | classes |
    |---|---|
    | `script` | Latin, Cyrillic, Canadian syllabics |
    | `case` | none (syllabics and a few other letters), lower, upper |
    | `weight` | regular, bold |
    | `slant` | upright, slanted |
    | `family` | sans, mono, serif |

    Letters are split into 80 % train, 10 % validation and 10 % test: test images show new letters of known
    scripts. A letter shared by several scripts belongs to the one with the lowest code; A is Latin.

    Args:
        data_dir: as in `Glyphs`, which draws the images on first use.
        device: device of the images and the episodes.
        tasks: the tasks to keep, in this order.

    Raises:
        ValueError: no task, an unknown or a duplicate task.

    >>> attributes = GlyphAttributes(tasks=("script", "weight"))
    >>> attributes.classes
    {'script': 3, 'weight': 2}
    >>> episodes = attributes.split("train").sample(64, torch.Generator())  # doctest: +SKIP
    >>> episodes["script"].query.x.shape, episodes["script"].query.y.shape  # doctest: +SKIP
    (torch.Size([64, 1, 28, 28]), torch.Size([64]))
    """

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
        tasks: Iterable[str] = TASKS,
    ) -> None:
        self.tasks = tuple(tasks)
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks={self.tasks} must be different names out of {', '.join(TASKS)}.")
        self.device = device
        self.loss: dict[str, Loss] = {task: F.cross_entropy for task in self.tasks}
        self.metrics: dict[str, dict[str, Metric]] = {task: {"accuracy": accuracy} for task in self.tasks}
        self._glyphs = Glyphs(data_dir=data_dir, device=device)

    @cached_property
    def class_names(self) -> dict[str, list[str]]:
        """Task -> the names of its classes, in the order of the labels."""
        names = {
            "script": self._glyphs.scripts["train"],
            "case": list(CASES),
            "weight": list(WEIGHTS),
            "slant": list(SLANTS),
            "family": list(FAMILIES),
        }
        return {task: names[task] for task in self.tasks}

    @property
    def classes(self) -> dict[str, int]:
        """Task -> number of classes, which is the number of outputs of its head."""
        return {task: len(names) for task, names in self.class_names.items()}

    @cached_property
    def _labels(self) -> dict[str, Tensor]:
        """Task -> labels `[M]` of all images; the script is -1 for letters of no training script."""
        glyphs = self._glyphs
        scripts = glyphs.scripts["train"]
        # Script and case come from the same letter of a class: a triangle is a Greek upper-case letter or
        # a Canadian syllable without case, but not a Canadian upper-case letter.
        first = [
            next((a for a in letters if a.script in scripts), letters[0]) for letters in glyphs.letters
        ]
        of_class = {
            "script": torch.tensor([scripts.index(a.script) if a.script in scripts else -1 for a in first]),
            "case": torch.tensor([CASES.index(a.case) for a in first]),
        }
        labels = {task: values[glyphs.labels] for task, values in of_class.items()}
        for task in ("weight", "slant", "family"):
            labels[task] = torch.from_numpy(glyphs.arrays[task]).long()
        return labels

    def split(self, name: str) -> SharedPictures:
        """The images of the `"train"`, `"validation"` or `"test"` letters.

        Raises:
            ValueError: an unknown split.
        """
        check_split(name)
        letters = np.random.default_rng(0).permutation(self._glyphs.classes["train"])
        bounds = [round(len(letters) * fraction) for fraction in (0.0, 0.8, 0.9, 1.0)]
        index = SPLITS.index(name)
        part = torch.from_numpy(np.sort(letters[bounds[index] : bounds[index + 1]]))
        positions = torch.isin(self._glyphs.labels, part).nonzero().flatten()
        return SharedPictures(self, self._glyphs.images, positions, self._labels)


class SharedPictures:
    """Batches of images with one label per task; returned by `GlyphAttributes.split`."""

    def __init__(
        self, family: GlyphAttributes, images: Tensor, positions: Tensor, labels: dict[str, Tensor]
    ) -> None:
        self.classes, self.class_names = family.classes, family.class_names
        self.loss, self.metrics = family.loss, family.metrics
        self.positions = positions
        self._images = images
        self._labels = {task: labels[task].to(images.device) for task in family.tasks}

    def sample(self, n: int, rng: torch.Generator) -> dict[str, Episode]:
        """Draw `n` distinct images using `rng` (a generator on the CPU).

        Returns:
            Task -> `Episode` without support, with `query.y` `[n]`. All tasks share one `query.x`
            `[n, 1, 28, 28]`.

        Raises:
            ValueError: `n` is not between 1 and the number of images.
        """
        if not 1 <= n <= len(self.positions):
            raise ValueError(
                f"n={n} images requested, but this split has {len(self.positions)}; pass a smaller n."
            )
        positions = self.positions[torch.randperm(len(self.positions), generator=rng)[:n]]
        indices = positions.to(self._images.device, non_blocking=True)
        x = self._images[indices].unsqueeze(1).to(torch.get_default_dtype()).div_(255)
        return {
            task: Episode(None, Batch(x, labels[indices]), ways=self.classes[task])
            for task, labels in self._labels.items()
        }
