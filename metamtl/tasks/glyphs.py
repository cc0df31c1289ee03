"""Letters of many scripts, drawn on first use: few-shot image classification without a download."""

from __future__ import annotations

import os
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..datasets import glyphs
from ..datasets.files import SPLITS, check_split, split_file
from ..datasets.glyph_drawing import CASES, EXAMPLES
from .few_shot import FewShot, Rotations


class Letter(NamedTuple):
    """One Unicode letter of a class. Most classes have one letter; A has three: Latin, Greek, Cyrillic."""

    code: int
    name: str
    script: str
    case: str


class Glyphs:
    """N-way K-shot classification of letters; the test scripts do not occur in training.

    Over 2,000 letters, each drawn 20 times at 28x28 pixels with 4 to 12 of the DejaVu fonts (Sans, Mono
    and Serif, regular and bold, upright and slanted) that are part of matplotlib, with small random
    shifts, rotations and scalings. Letters with the same shape (Latin, Greek and Cyrillic A) form one
    class. Train: Latin, Cyrillic, Canadian syllabics. Validation: Greek. Test: Arabic, Armenian, Georgian,
    Hebrew and four more. A class with a letter of a training script is in train, so no letter is in two
    splits.

    The letters are drawn on first use, in about 10 seconds, and stored in the data folder: `data_dir`, or
    else the environment variable `METAMTL_DATA`, or else the user's cache folder. If the folder of
    `METAMTL_DATA` is not writable, the cache folder is used.

    Args:
        ways: classes per task, N.
        shots: support examples per class, K.
        queries: query examples per class, Q; K + Q is at most 20.
        rotations: as in `FewShot`.
        data_dir: the folder that contains `glyphs/`, the folder of the drawn letters.
        device: device of the images and the episodes.

    Raises (on first use):
        ImportError: matplotlib or pillow is missing and the letters are not drawn yet.
        RuntimeError: the file of drawn letters is damaged.

    >>> glyphs = Glyphs(ways=5, shots=1, queries=15)
    >>> episode = glyphs.split("test").sample(4, torch.Generator().manual_seed(0))  # doctest: +SKIP
    >>> episode.support.x.shape  # doctest: +SKIP
    torch.Size([4, 5, 1, 28, 28])
    """

    def __init__(
        self,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        *,
        rotations: Rotations = "none",
        data_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.ways, self.shots, self.queries, self.rotations = ways, shots, queries, rotations
        self.data_dir, self.device = data_dir, device

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of `glyph_drawing.draw`, read from the file if it exists."""
        return glyphs.load(self.data_dir)

    @cached_property
    def images(self) -> Tensor:
        """Images `[M, 28, 28]`, `uint8`, ink 255 and background 0; 20 per class, ordered by class."""
        return torch.from_numpy(self.arrays["images"]).to(self.device)

    @cached_property
    def labels(self) -> Tensor:
        """Class of each image, `[M]`; classes `0 .. C-1` are sorted by script and code."""
        return torch.from_numpy(self.arrays["labels"]).long()

    @cached_property
    def letters(self) -> list[list[Letter]]:
        """The letters of each class; the first is the one that is drawn."""
        letters: list[list[Letter]] = [[] for _ in range(len(self.labels) // EXAMPLES)]
        a = self.arrays
        rows = zip(*(a[k].tolist() for k in ("code_class", "codes", "names", "script", "case")))
        for number, code, name, script, case in rows:
            letters[number].append(Letter(code, name, str(a["script_names"][script]), CASES[case]))
        return letters

    @cached_property
    def scripts(self) -> dict[str, list[str]]:
        """The scripts of each split."""
        return {name: split_file("glyphs")[name] for name in SPLITS}

    @cached_property
    def classes(self) -> dict[str, list[int]]:
        """The classes of each split; a class is in the first split with one of its scripts."""
        split_of = {script: name for name, scripts in self.scripts.items() for script in scripts}
        classes: dict[str, list[int]] = {name: [] for name in SPLITS}
        for number, letters in enumerate(self.letters):
            classes[min((split_of[letter.script] for letter in letters), key=SPLITS.index)].append(number)
        return classes

    def split(self, name: str) -> FewShot:
        """The tasks of `"train"`, `"validation"` or `"test"`.

        Raises:
            ValueError: an unknown split, or invalid options of `FewShot`.
        """
        check_split(name)
        return FewShot(
            self.images,
            self.labels,
            ways=self.ways,
            shots=self.shots,
            queries=self.queries,
            classes=self.classes[name],
            rotations=self.rotations,
        )
