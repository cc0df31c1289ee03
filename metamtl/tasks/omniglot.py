"""Omniglot: 1,623 handwritten characters from 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..datasets.files import data_folder, split_file
from ..datasets.omniglot import DRAWERS, Arrays, load
from ..losses import Loss
from ..metrics import Metric
from .draws import check_counts
from .few_shot import FewShot, Rotations
from .grouped import GroupedTasks

Protocol = Literal["maml", "vinyals", "alphabets"]
Split = Literal["train", "validation", "test"]


class Omniglot:
    """Few-shot classification of handwritten characters; images of 28x28 pixels, ink = 1.

    Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program
    induction. Science 350 (2015). Splits by character:

    - `"maml"`: 1100 train, 100 validation, 423 test characters, shuffled with Python's
      `random.seed(1)` as in the MAML authors' code (https://arxiv.org/abs/1703.03400). Differs from it
      in: 1. that code shuffles the folders in the order of `os.listdir`, which depends on the file system
      and is not reproducible; here `Alphabet/characterNN` are sorted first, and the result is stored in
      `data/splits/omniglot_maml.json`. 2. That code resizes the 1-bit files with LANCZOS, which PIL
      silently replaces by the nearest pixel for 1-bit images; here every drawing is converted to 8 bits
      first.
    - `"vinyals"`: 1028, 172 and 423 characters (https://arxiv.org/abs/1606.04080).
    - `"alphabets"`: 25, 5 and 20 complete alphabets (883, 81 and 659 characters). The test alphabets are
      the evaluation set, the validation alphabets the five smallest of the background set, as in
      Meta-Dataset (https://arxiv.org/abs/1903.03096).

    `rotations` is independent of the protocol: one random multiple of 90 degrees for each class of each
    episode, in training and test (`"episode"`, as in the MAML code); or four classes from each character
    (`"classes"`, as in ProtoNet), where the character of a class id is `id // 4`.

    The data is read on first use from `<data_dir>/omniglot`: either the prepared file
    `omniglot_28_u8.npz`, or the two official archives, from which that file is then prepared; with
    `download=True`, missing archives are downloaded first. Sizes and checksums are compared with
    `data/sources.yaml`. An id in `Episode.task` is an index into `character_names` and `alphabets`.

    Args:
        ways, shots, queries, rotations, device: as in `FewShot`. The MAML authors use `queries=shots`.
        protocol: the split into training, validation and test characters.
        within: `"alphabet"`: all classes of a task are characters of one alphabet, and a split is
            `GroupedTasks` by alphabet, without alphabets that have fewer than `ways` classes. If None,
            classes come from all alphabets.
        data_dir: the folder that contains `omniglot/`; if None, the environment variable `METAMTL_DATA`,
            or else the user's cache.
        download: download missing files.

    Raises:
        ValueError: unknown options, more than the 20 drawings of a character; on first use, a truncated or
            altered file.
        FileNotFoundError: on first use, the data is missing and `download` is False.
        ConnectionError: on first use, the download failed.

    >>> omniglot = Omniglot(ways=20, shots=1, queries=1, download=True)
    >>> episode = omniglot.split("train").sample(4, torch.Generator().manual_seed(0))  # doctest: +SKIP
    >>> episode.support.x.shape  # doctest: +SKIP
    torch.Size([4, 20, 1, 28, 28])
    """

    loss: Loss = staticmethod(FewShot.loss)
    metrics: ClassVar[Mapping[str, Metric]] = FewShot.metrics

    def __init__(
        self,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        *,
        protocol: Protocol = "maml",
        rotations: Rotations = "episode",
        within: Literal["alphabet"] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        download: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if protocol not in get_args(Protocol):
            raise ValueError(f"protocol={protocol!r} is not one of {_listed(get_args(Protocol))}.")
        if rotations not in get_args(Rotations):
            raise ValueError(f"rotations={rotations!r} is not one of {_listed(get_args(Rotations))}.")
        if within not in ("alphabet", None):
            raise ValueError(f"within={within!r} is not 'alphabet' or None.")
        check_counts(shots, queries)
        if ways < 1:
            raise ValueError(f"ways={ways} must be at least 1.")
        if shots + queries > DRAWERS:
            raise ValueError(
                f"{shots} shots + {queries} queries need {shots + queries} drawings per character,"
                f" but Omniglot has {DRAWERS}; lower shots or queries."
            )
        self.ways, self.shots, self.queries = ways, shots, queries
        self.protocol, self.rotations, self.within = protocol, rotations, within
        self.data_dir, self.download, self.device = data_dir, download, device
        self._splits: dict[str, FewShot | GroupedTasks] = {}

    def split(self, name: Split) -> FewShot | GroupedTasks:
        """The tasks of one split; all splits share the images.

        Raises:
            ValueError: an unknown split; with `within`, no alphabet has enough classes for a task.
        """
        if name not in get_args(Split):
            raise ValueError(f"split {name!r} is not one of {_listed(get_args(Split))}.")
        if name not in self._splits:
            row = {character: index for index, character in enumerate(self.character_names)}
            rows = [row[character] for character in split_file(f"omniglot_{self.protocol}")[name]]
            self._splits[name] = self._tasks(rows) if self.within is None else self._by_alphabet(name, rows)
        return self._splits[name]

    def _tasks(self, rows: list[int]) -> FewShot:
        return FewShot(
            self._images,
            self._arrays["character"],
            ways=self.ways,
            shots=self.shots,
            queries=self.queries,
            classes=rows,
            rotations=self.rotations,
        )

    def _by_alphabet(self, name: str, rows: list[int]) -> GroupedTasks:
        members: dict[str, list[int]] = {}
        for row, alphabet in zip(rows, self.alphabets[rows].tolist()):
            members.setdefault(self.alphabet_names[alphabet], []).append(row)
        if self.ways > (most := max(map(len, members.values()))):
            raise ValueError(
                f"{self.ways}-way tasks within one alphabet need {self.ways} classes per alphabet, but no"
                f" alphabet has more than {most} in the split {name!r} of protocol {self.protocol!r}; lower"
                " ways, use protocol='alphabets', or omit within."
            )
        large = {alphabet: ids for alphabet, ids in members.items() if len(ids) >= self.ways}
        return GroupedTasks({alphabet: self._tasks(large[alphabet]) for alphabet in sorted(large)})

    @property
    def character_names(self) -> list[str]:
        """`Alphabet/characterNN` of each character, `[1623]`."""
        return self._arrays["character_names"].tolist()

    @property
    def alphabet_names(self) -> list[str]:
        """Names of the alphabets, `[50]`: 30 from the background set, then 20 from the evaluation set."""
        return self._arrays["alphabet_names"].tolist()

    @property
    def alphabets(self) -> Tensor:
        """Index of the alphabet of each character, `[1623]`; for rotated classes, `alphabets[id // 4]`."""
        return torch.as_tensor(self._arrays["alphabet"][::DRAWERS]).long()

    @cached_property
    def _arrays(self) -> Arrays:
        return load(data_folder("omniglot", self.data_dir), download=self.download)

    @cached_property
    def _images(self) -> Tensor:
        images = torch.as_tensor(self._arrays["images"])
        return images if self.device is None else images.to(self.device)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)
