"""Letters of the world's scripts, drawn on first use: few-shot images without a download."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .few_shot import FewShot, Rotations
from .files import atomic_write, data_folder, split_file
from .glyph_drawing import CASES, EXAMPLES, SIZE, VERSION, draw

SPLITS = ("train", "validation", "test")

# What reading a file cut short, overwritten in part or of another kind raises.
_DAMAGE = (
    OSError,
    EOFError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    NotImplementedError,  # what zipfile says of a method that damage made up
    zipfile.BadZipFile,
    zlib.error,
)

_log = logging.getLogger(__name__)


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
        return load(self.data_dir)

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


def check_split(name: str) -> None:
    """Refuse a name that is none of `SPLITS`."""
    if name not in SPLITS:
        raise ValueError(f"split {name!r} is not one of {', '.join(map(repr, SPLITS))}.")


def load(data_dir: str | os.PathLike[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of `glyph_drawing.draw`: read from the data folder, or drawn and written there."""
    # The version is in the name, so that two versions of metamtl can use one folder.
    paths = [folder / f"glyphs-{VERSION}.npz" for folder in _folders(data_dir)]
    for path in paths:
        if os.access(path, os.R_OK):
            return _read(path)
    arrays = draw()
    for path in paths:
        try:
            with atomic_write(path) as partial:
                np.savez_compressed(partial, version=np.array(VERSION), **arrays)  # type: ignore[arg-type]
        except OSError as error:
            _log.info("cannot keep the drawn letters in %s: %s", path, error)
        else:
            _log.info("drew %d letters into %s", len(arrays["labels"]) // EXAMPLES, path)
            break
    return arrays


def _folders(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The data folder; where the environment names it, then the user's cache for when it is read-only."""
    folders = [data_folder("glyphs", data_dir)]
    if data_dir is not None:
        return folders
    try:
        import platformdirs
    except ImportError:
        return folders
    return list(dict.fromkeys([*folders, platformdirs.user_cache_path("metamtl") / "glyphs"]))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, as numpy leaves open what it finds to be no npz file.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        found = int(arrays.pop("version"))
        pictures = (len(arrays["labels"]), SIZE, SIZE)
        whole = arrays["images"].shape == pictures
    except _DAMAGE as error:
        raise RuntimeError(
            f"{path} is not a whole file of drawn letters ({type(error).__name__}: {error});"
            " delete it, and the letters are drawn again."
        ) from error
    if found != VERSION or not whole:
        raise RuntimeError(
            f"{path} holds letters of drawing version {found}, images {list(arrays['images'].shape)}; this"
            f" metamtl needs version {VERSION}, {list(pictures)}. Delete it, and they are drawn again."
        )
    return arrays
