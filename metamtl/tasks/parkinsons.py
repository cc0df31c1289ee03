"""Parkinson's telemonitoring: how far the disease has come, from recordings of the voice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from ..datasets import parkinsons
from ..datasets.files import check_split
from ..datasets.prepared import Arrays, Dir
from ..datasets.preprocess import chosen, split_groups, standardized, targets
from ..episode import Batch, Episode
from ..losses import Loss, mean_over_labeled
from ..metrics import Metric, absolute_error, mse
from .labeled import LabeledTasks

TASKS = ("motor", "total")


class Parkinsons:
    """Motor and total UPDRS, the doctors' score, of patients never heard in training.

    Tsanas, Little, McSharry, Ramig 2009, https://doi.org/10.1109/TBME.2009.2036000. 5,875 recordings of
    42 patients; the input is age, sex, days since the start and 16 measures of the voice, `[n, 19]`. Inputs
    and targets are standardised by the training patients (28 of them; 6 validation, 8 test). Metrics: `mse`
    in training deviations, 1 being no better than the training mean for patients like those of training;
    `mae` in points of the score.

    Published results mostly divide the recordings at random, so that every patient is known; they
    are far better, and say nothing of new patients.

    Args:
        tasks: `motor`, `total` or both.
        data_dir: the folder in which `parkinsons/parkinsons_updrs.npz` lies.
        device: where the tensors are kept and the episodes are made.

    Raises:
        FileNotFoundError, ValueError: on first use, the data is missing or damaged.

    >>> episodes = Parkinsons().split("train").sample(64, torch.Generator())  # doctest: +SKIP
    >>> episodes["motor"].query.x.shape, episodes["total"].query.y.shape  # doctest: +SKIP
    (torch.Size([64, 19]), torch.Size([64, 1]))
    """

    def __init__(
        self,
        *,
        tasks: Iterable[str] | None = None,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.tasks = chosen(tasks, TASKS)
        self.recordings = Recordings(data_dir)
        self.device = device

    def split(self, name: str) -> LabeledTasks:
        """The recordings of the patients of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        found = self.recordings
        at = found.parts[name]
        columns = {task: i for i, task in enumerate(TASKS)}
        return LabeledTasks(
            torch.as_tensor(found.x[at]).to(torch.get_default_dtype()),
            {task: targets(found.y[at, columns[task]]) for task in self.tasks},
            loss=dict.fromkeys(self.tasks, mean_over_labeled(F.mse_loss)),
            metrics={
                task: {"mse": mse, "mae": absolute_error(float(found.deviation[columns[task]]))}
                for task in self.tasks
            },
            outputs=dict.fromkeys(self.tasks, 1),
            device=self.device,
        )


class Patients:
    """Each patient as a few-shot task: both scores, from K recordings.

    Prepared and split as in `Parkinsons`. `support.x` `[T, K, 19]`, `query.y` `[T, Q, 2]`, motor and total
    UPDRS in training deviations; `task` is the patient's number.

    Args:
        shots, queries: recordings of a patient in support and query, all distinct; each has 101 or more.
        data_dir, device: as in `Parkinsons`.

    Raises:
        ValueError: on first use, a patient has fewer recordings than K + Q, or the data is damaged.
        FileNotFoundError: on first use, the data is missing.
    """

    loss: Loss = staticmethod(F.mse_loss)
    metrics: ClassVar[Mapping[str, Metric]] = {"mse": mse}

    def __init__(
        self,
        shots: int = 10,
        queries: int = 20,
        *,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        if min(shots, queries) < 1:
            raise ValueError(f"shots={shots}, queries={queries}: each must be at least 1.")
        self.shots, self.queries = shots, queries
        self.recordings, self.device = Recordings(data_dir), device

    def split(self, name: str) -> PatientTasks:
        """The patients of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        return PatientTasks(self, self.recordings.parts[name])


class PatientTasks:
    """Few-shot tasks, each of one patient; made by `Patients.split`."""

    loss: Loss = staticmethod(F.mse_loss)
    metrics: ClassVar[Mapping[str, Metric]] = Patients.metrics

    def __init__(self, family: Patients, positions: np.ndarray) -> None:
        found, self.shots, self.queries = family.recordings, family.shots, family.queries
        subject = found.subject[positions]
        self._of = {int(p): torch.from_numpy(positions[subject == p]) for p in np.unique(subject)}
        total = self.shots + self.queries
        if short := {patient: len(rows) for patient, rows in self._of.items() if len(rows) < total}:
            raise ValueError(
                f"{self.shots} shots + {self.queries} queries need {total} recordings of each patient, but"
                f" found {short}; lower shots or queries."
            )
        dtype, device = torch.get_default_dtype(), family.device
        self._x = torch.as_tensor(found.x).to(device, dtype)
        self._y = torch.as_tensor(found.y).to(device, dtype)

    @property
    def ids(self) -> list[int]:
        """The patients' numbers, as they stand in `Episode.task`."""
        return list(self._of)

    def sample(self, num_tasks: int, rng: torch.Generator) -> Episode:
        """Draw `num_tasks` patients, with replacement, and recordings of each."""
        drawn = torch.tensor(self.ids)[torch.randint(len(self._of), (num_tasks,), generator=rng)]
        total = self.shots + self.queries
        rows = torch.stack(
            [
                mine[torch.randperm(len(mine), generator=rng)[:total]]
                for mine in (self._of[patient] for patient in drawn.tolist())
            ]
        ).to(self._x.device)
        x, y, k = self._x[rows], self._y[rows], self.shots
        return Episode(Batch(x[:, :k], y[:, :k]), Batch(x[:, k:], y[:, k:]), task=drawn.to(self._x.device))


class Recordings:
    """All the recordings, standardised by the training patients; read on first use.

    Attributes:
        x: `[M, 19]`. y: `[M, 2]`. subject: `[M]`. parts: positions by split. deviation: `[2]`, of the
        scores, in points.
    """

    def __init__(self, data_dir: Dir = None) -> None:
        self.data_dir = data_dir

    @cached_property
    def _arrays(self) -> Arrays:
        return parkinsons.load(self.data_dir)

    @property
    def subject(self) -> np.ndarray:
        return self._arrays["subject"]

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        return split_groups(self.subject, (28 / 42, 6 / 42, 8 / 42))

    @cached_property
    def x(self) -> np.ndarray:
        return standardized(self._arrays["x"], self.parts["train"])[0]

    @cached_property
    def y(self) -> np.ndarray:
        return standardized(self._arrays["y"], self.parts["train"])[0]

    @cached_property
    def deviation(self) -> np.ndarray:
        return standardized(self._arrays["y"], self.parts["train"])[2]
