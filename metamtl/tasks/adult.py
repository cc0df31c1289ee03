"""Adult: income and marital status from the 1994 US census."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets import adult
from ..datasets.files import check_split
from ..datasets.prepared import Arrays, Dir
from ..datasets.preprocess import chosen, split_groups, standardized, targets
from ..losses import mean_over_labeled
from ..metrics import binary_accuracy, roc_auc
from .labeled import LabeledTasks

TASKS = ("income", "never_married")
# Excluded from the input: the targets, a column that reveals one, a duplicate, and the sample weight.
LEFT_OUT = ("income-per-year", "marital-status", "relationship", "education", "fnlwgt")


class Adult:
    """Income over 50,000 dollars (`income`) and never having married (`never_married`), as binary labels.

    The two tasks of Ma et al. 2018 (MMoE, https://dl.acm.org/doi/10.1145/3219819.3220007) on a smaller
    census (Becker and Kohavi 1996). The input excludes both targets, `relationship` (its values Husband
    and Wife reveal marriage), `education` (equivalent to `education-num`) and `fnlwgt` (the number of
    people that a row represents). Input: 5 numbers, standardized with the training rows, capital gain and
    loss as `log(1 + x)`; and one-hot columns of 5 categorical variables (levels that are not in the
    training rows have no column). Labels are 1. and 0., metrics ROC-AUC and accuracy.

    Random split of the 32,561 rows: 80 % train, 10 % validation, 10 % test; duplicates are in one split.

    Args:
        tasks: the tasks to keep.
        data_dir: the folder that contains `adult/adult.npz`.
        device: device of the tensors and the episodes.

    Raises:
        FileNotFoundError, ValueError: on first use, if the data is missing or damaged.

    >>> train = Adult().split("train")  # doctest: +SKIP
    >>> train.outputs, train.sample(64, torch.Generator())["income"].query.y.shape  # doctest: +SKIP
    ({'income': 1, 'never_married': 1}, torch.Size([64, 1]))
    """

    protocol: ClassVar[str] = "adult.npz, random split 80 / 10 / 10 % of the rows, duplicates together"

    def __init__(
        self,
        *,
        tasks: Iterable[str] | None = None,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.tasks = chosen(tasks, TASKS)
        self.data_dir, self.device = data_dir, device

    def split(self, name: str) -> LabeledTasks:
        """The rows of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        rows = self._parts[name]
        labels = {
            "income": self._column("income-per-year") == self._level("income-per-year", ">50K"),
            "never_married": self._column("marital-status")
            == self._level("marital-status", "Never-married"),
        }
        return LabeledTasks(
            self._x[rows],
            {task: targets(labels[task][rows]) for task in self.tasks},
            loss=dict.fromkeys(self.tasks, mean_over_labeled(F.binary_cross_entropy_with_logits)),
            metrics={task: {"roc_auc": roc_auc, "accuracy": binary_accuracy} for task in self.tasks},
            outputs=dict.fromkeys(self.tasks, 1),
            device=self.device,
        )

    @cached_property
    def input_names(self) -> list[str]:
        """Name of each input column: `age`, ..., `sex=Female`, ..."""
        return [*self._numeric, *(f"{column}={level}" for column, level, _ in self._levels)]

    @cached_property
    def _arrays(self) -> Arrays:
        return adult.load(self.data_dir)

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        columns = np.concatenate([self._arrays["numeric"], self._arrays["categorical"]], 1)
        return split_groups(np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1), (0.8, 0.1, 0.1))

    @property
    def _numeric(self) -> list[str]:
        return [name for name in self._arrays["numeric_names"].tolist() if name not in LEFT_OUT]

    @cached_property
    def _levels(self) -> list[tuple[str, str, int]]:
        """Column, level and code of every level in the training rows."""
        train = self._parts["train"]
        return [
            (column, str(self._arrays[f"levels_{column}"][code]), int(code))
            for column in self._arrays["categorical_names"].tolist()
            if column not in LEFT_OUT
            for code in np.unique(self._column(column)[train])
        ]

    @cached_property
    def _x(self) -> Tensor:
        names = self._arrays["numeric_names"].tolist()
        numbers = self._arrays["numeric"][:, [names.index(name) for name in self._numeric]].astype(
            np.float64
        )
        for column, name in enumerate(self._numeric):
            if name.startswith("capital"):
                numbers[:, column] = np.log1p(numbers[:, column])
        numbers, *_ = standardized(numbers, self._parts["train"])
        levels = [self._column(column) == code for column, _, code in self._levels]
        return torch.from_numpy(np.column_stack([numbers, *levels])).to(torch.get_default_dtype())

    def _column(self, name: str) -> np.ndarray:
        return self._arrays["categorical"][:, self._arrays["categorical_names"].tolist().index(name)]

    def _level(self, column: str, level: str) -> int:
        return self._arrays[f"levels_{column}"].tolist().index(level)
