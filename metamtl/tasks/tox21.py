"""Tox21: twelve toxicity assays per molecule, with missing labels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets import tox21
from ..datasets.files import check_split
from ..datasets.prepared import Arrays, Dir
from ..datasets.preprocess import chosen, split_groups, standardized, targets
from ..losses import mean_over_labeled
from ..metrics import binary_accuracy, roc_auc
from .labeled import LabeledTasks


class Tox21:
    """Activity of a molecule in 12 assays, as binary labels; a fifth of the labels is missing.

    Tox21 Data Challenge 2014; Wu et al. 2018 (MoleculeNet), https://arxiv.org/abs/1703.00564. The input is
    `[n, 1034]`: the 1,024 bits of a Morgan fingerprint of radius 2, and ten descriptors (weight, log P,
    ...), standardized with the training molecules and clipped at 5 standard deviations. A label is 1., 0.,
    or NaN if the assay was not measured; the loss is `mean_over_labeled`, the metric is ROC-AUC, both over
    measured labels. Batches do not contain assays without a label.

    Random split: 80 % train, 10 % validation, 10 % test, as MoleculeNet recommends for this data set;
    molecules with equal fingerprints (stereoisomers and salts) are in one split.

    Args:
        tasks: the assays to keep.
        data_dir: the folder that contains `tox21/tox21.npz`.
        device: device of the tensors and the episodes.

    Raises:
        FileNotFoundError, ValueError: on first use, if the data is missing or damaged.

    >>> episodes = Tox21().split("train").sample(64, torch.Generator())  # doctest: +SKIP
    >>> episodes["NR-AR"].query.x.shape, episodes["NR-AR"].query.y.shape  # doctest: +SKIP
    (torch.Size([64, 1034]), torch.Size([64, 1]))
    """

    protocol: ClassVar[str] = (
        "tox21.npz (from tox21.csv.gz of MoleculeNet), random split 80 / 10 / "
        "10 %, equal fingerprints together"
    )

    def __init__(
        self,
        *,
        tasks: Iterable[str] | None = None,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.tasks = chosen(tasks, tox21.ASSAYS)
        self.data_dir, self.device = data_dir, device

    def split(self, name: str) -> LabeledTasks:
        """The molecules of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        rows = self._parts[name]
        columns = {str(assay): i for i, assay in enumerate(self._arrays["task_names"])}
        return LabeledTasks(
            self._x[rows],
            {task: targets(self._arrays["y"][rows, columns[task]], missing=-1) for task in self.tasks},
            loss=dict.fromkeys(self.tasks, mean_over_labeled(F.binary_cross_entropy_with_logits)),
            metrics={task: {"roc_auc": roc_auc, "accuracy": binary_accuracy} for task in self.tasks},
            outputs=dict.fromkeys(self.tasks, 1),
            device=self.device,
        )

    @cached_property
    def _arrays(self) -> Arrays:
        return tox21.load(self.data_dir)

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        groups = np.unique(self._arrays["fingerprint_packed"], axis=0, return_inverse=True)[1].reshape(-1)
        return split_groups(groups, (0.8, 0.1, 0.1))

    @cached_property
    def _x(self) -> Tensor:
        bits = np.unpackbits(self._arrays["fingerprint_packed"], axis=1, count=tox21.BITS)
        numbers, *_ = standardized(self._arrays["descriptors"].astype(np.float64), self._parts["train"])
        features = np.concatenate([bits, numbers.clip(-5, 5)], 1)
        return torch.from_numpy(features).to(torch.get_default_dtype())
