"""Parkinson's telemonitoring: severity of the disease from voice recordings."""

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
from ..episode import Episode
from ..losses import Loss, mean_over_labeled
from ..metrics import Metric, absolute_error, mse
from .draws import check_counts, episode_of
from .labeled import LabeledTasks

TASKS = ("motor", "total")


class Parkinsons:
    """Motor and total UPDRS (a clinical score) of patients that are not in the training set.

    Tsanas, Little, McSharry, Ramig 2009, https://doi.org/10.1109/TBME.2009.2036000. 5,875 recordings of
    42 patients; the input is age, sex, days since the start and 16 voice measures, `[n, 19]`. Inputs and
    targets are standardized with the training patients (28; 6 validation, 8 test). Metrics: `mse` of the
    standardized scores, which is 1 for the mean prediction on the training patients; `mae` in points of
    the score.

    Most published results split the recordings at random, so that every patient is in the training set.
    Their errors are much lower, but do not apply to new patients.

    Args:
        tasks: `motor`, `total` or both.
        data_dir: the folder that contains `parkinsons/parkinsons_updrs.npz`.
        device: device of the tensors and the episodes.

    Raises:
        FileNotFoundError, ValueError: on first use, if the data is missing or damaged.

    >>> episodes = Parkinsons().split("train").sample(64, torch.Generator())  # doctest: +SKIP
    >>> episodes["motor"].query.x.shape, episodes["total"].query.y.shape  # doctest: +SKIP
    (torch.Size([64, 19]), torch.Size([64, 1]))
    """

    protocol: ClassVar[str] = "parkinsons_updrs.npz, split by patient: 28 / 6 / 8 of 42 patients"

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
        recordings = self.recordings
        rows = recordings.parts[name]
        columns = {task: i for i, task in enumerate(TASKS)}
        return LabeledTasks(
            torch.as_tensor(recordings.x[rows]).to(torch.get_default_dtype()),
            {task: targets(recordings.y[rows, columns[task]]) for task in self.tasks},
            loss=dict.fromkeys(self.tasks, mean_over_labeled(F.mse_loss)),
            metrics={
                task: {"mse": mse, "mae": absolute_error(float(recordings.deviation[columns[task]]))}
                for task in self.tasks
            },
            outputs=dict.fromkeys(self.tasks, 1),
            device=self.device,
        )


class Patients:
    """Few-shot regression with one task per patient: both scores, from K recordings.

    Standardized and split as in `Parkinsons`. `support.x` is `[T, K, 19]`; `query.y` is `[T, Q, 2]`, the
    standardized motor and total UPDRS; `task` is the number of the patient.

    Args:
        shots, queries: support and query recordings per patient, all distinct; each patient has 101 or
            more. One of the two may be 0, as in `FewShot`.
        data_dir, device: as in `Parkinsons`.

    Raises:
        ValueError: on first use, if a patient has fewer than K + Q recordings, or the data is damaged.
        FileNotFoundError: on first use, if the data is missing.
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
        check_counts(shots, queries)
        self.shots, self.queries = shots, queries
        self.recordings, self.device = Recordings(data_dir), device

    def split(self, name: str) -> PatientTasks:
        """The patients of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        return PatientTasks(self, self.recordings.parts[name])


class PatientTasks:
    """Few-shot tasks with one patient each; returned by `Patients.split`."""

    loss: Loss = staticmethod(F.mse_loss)
    metrics: ClassVar[Mapping[str, Metric]] = Patients.metrics

    def __init__(self, family: Patients, positions: np.ndarray) -> None:
        recordings, self.shots, self.queries = family.recordings, family.shots, family.queries
        subject = recordings.subject[positions]
        self._of = {int(p): torch.from_numpy(positions[subject == p]) for p in np.unique(subject)}
        total = self.shots + self.queries
        if short := {patient: len(rows) for patient, rows in self._of.items() if len(rows) < total}:
            raise ValueError(
                f"{self.shots} shots + {self.queries} queries need {total} recordings per patient, but"
                f" found {short}; lower shots or queries."
            )
        dtype, device = torch.get_default_dtype(), family.device
        self._x = torch.as_tensor(recordings.x).to(device, dtype)
        self._y = torch.as_tensor(recordings.y).to(device, dtype)

    @property
    def ids(self) -> list[int]:
        """Numbers of the patients, as in `Episode.task`."""
        return list(self._of)

    def sample(self, num_tasks: int, rng: torch.Generator) -> Episode:
        """Draw `num_tasks` patients with replacement, and distinct recordings of each."""
        patients = torch.tensor(self.ids)[torch.randint(len(self._of), (num_tasks,), generator=rng)]
        total = self.shots + self.queries
        rows = torch.stack(
            [
                recordings[torch.randperm(len(recordings), generator=rng)[:total]]
                for recordings in (self._of[patient] for patient in patients.tolist())
            ]
        ).to(self._x.device)
        return episode_of(self._x[rows], self._y[rows], self.shots, patients.to(self._x.device))


class Recordings:
    """All recordings, standardized with the training patients; read on first use.

    Attributes:
        x: `[M, 19]`. y: `[M, 2]`. subject: `[M]`. parts: row indices by split. deviation: `[2]`,
        standard deviations of the scores, in points.
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
