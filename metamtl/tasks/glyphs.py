"""Letters of the world's scripts, drawn on first use: few-shot images without a download."""

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
    """One code of a class: the classes of most letters have one, that of A has Latin, Greek, Cyrillic."""

    code: int
    name: str
    script: str
    case: str


class Glyphs:
    """N-way K-shot tasks of telling letters apart, tested on scripts never seen in training.

    Over 2,000 letters, each drawn 20 times at 28x28 with 4 to 12 of the DejaVu fonts (Sans, Mono and
    Serif, regular and bold, upright and slanted) that matplotlib ships, each time with another small
    shift, turn and scaling. Letters that look the same under several codes (Latin, Greek and Cyrillic
    A) are one class. Train: Latin, Cyrillic, Canadian syllabics. Validation: Greek. Test: Arabic,
    Armenian, Georgian, Hebrew and four more. A class with a code of a train script is in train, so no
    letter is in two splits.

    The letters are drawn on first use, in about 10 seconds, and kept in the data folder: `data_dir`,
    or else the environment variable `METAMTL_DATA`, or else the user's cache folder; the cache folder
    also where the folder of `METAMTL_DATA` cannot be written.

    Args:
        ways: classes of a task, N.
        shots: support examples of a class, K.
        queries: query examples of a class, Q; K + Q is at most 20.
        rotations: as in `FewShot`.
        data_dir: the folder in which a folder `glyphs` holds the drawn letters.
        device: where the pictures are kept and the episodes are made.

    Raises (on first use):
        ImportError: matplotlib or pillow is missing and nothing is drawn yet.
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
        """What `glyph_drawing.draw` returns, from the file where there is one."""
        return glyphs.load(self.data_dir)

    @cached_property
    def images(self) -> Tensor:
        """`[M, 28, 28]` bytes, ink 255 on paper 0; class by class, 20 each."""
        return torch.from_numpy(self.arrays["images"]).to(self.device)

    @cached_property
    def labels(self) -> Tensor:
        """`[M]`, the class of each picture, `0 .. C-1`, sorted by script and code."""
        return torch.from_numpy(self.arrays["labels"]).long()

    @cached_property
    def letters(self) -> list[list[Letter]]:
        """The letters of each class; the first is the one that is drawn."""
        found: list[list[Letter]] = [[] for _ in range(len(self.labels) // EXAMPLES)]
        a = self.arrays
        rows = zip(*(a[k].tolist() for k in ("code_class", "codes", "names", "script", "case")))
        for number, code, name, script, case in rows:
            found[number].append(Letter(code, name, str(a["script_names"][script]), CASES[case]))
        return found

    @cached_property
    def scripts(self) -> dict[str, list[str]]:
        """The scripts of each split."""
        return {name: split_file("glyphs")[name] for name in SPLITS}

    @cached_property
    def classes(self) -> dict[str, list[int]]:
        """The classes of each split: by the first split that has one of the class's scripts."""
        split_of = {script: name for name, scripts in self.scripts.items() for script in scripts}
        found: dict[str, list[int]] = {name: [] for name in SPLITS}
        for number, letters in enumerate(self.letters):
            found[min((split_of[letter.script] for letter in letters), key=SPLITS.index)].append(number)
        return found

    def split(self, name: str) -> FewShot:
        """The tasks of `"train"`, `"validation"` or `"test"`.

        Raises:
            ValueError: no such split; or the faults that `FewShot` finds.
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
