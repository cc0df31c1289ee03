"""easy-VQA: questions about images of simple shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets import easy_vqa
from ..datasets.files import check_split
from ..datasets.prepared import Arrays, Dir
from ..datasets.preprocess import chosen, classes, split_groups
from ..datasets.vocabulary import Vocabulary, tokenize
from ..losses import Loss
from ..metrics import accuracy
from .labeled import LabeledTasks

TASKS = ("answer", "shape", "colour")
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
OUTPUTS = {"answer": 13, "shape": len(SHAPES), "colour": len(COLOURS)}
_DENIES = re.compile(r"\b(not|no)\b")


class EasyVQA:
    """Questions about images of one shape (Zhou 2019, https://github.com/vzhou842/easy-VQA).

    | task | labels |
    |---|---|
    | `answer` | answer to the question, one of 13: yes, no, a shape, a color |
    | `shape` | shape in the image: circle, rectangle, triangle |
    | `colour` | color of the shape: one of 8 |

    The data has no labels for shape and color. They are inferred from the questions and answers about each
    image ("is there a red shape?" yes; "what color is the circle?") and are missing if these do not
    determine them. The input is a dict of `image` `[n, 3, 64, 64]` in [0, 1] and the question's `tokens`
    and `mask` `[n, L]`. Test: the official split; validation: a tenth of the training images, with all
    their questions. The vocabulary is that of the training questions.

    Args:
        tasks: the tasks to keep.
        data_dir: the folder that contains `easy_vqa/easy_vqa.npz`.
        device: device of the tensors and the episodes.

    Raises:
        FileNotFoundError, ValueError: on first use, if the data is missing or damaged.

    >>> train = EasyVQA().split("train")  # doctest: +SKIP
    >>> train.sample(64, torch.Generator())["answer"].query.x["image"].shape  # doctest: +SKIP
    torch.Size([64, 3, 64, 64])
    """

    protocol: ClassVar[str] = (
        "easy_vqa.npz, official test set, validation: the questions of a tenth of the training images"
    )

    def __init__(
        self,
        *,
        tasks: Iterable[str] | None = None,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.tasks = chosen(tasks, TASKS)
        self.data_dir, self.device = data_dir, device

    def split(self, name: str) -> Questions:
        """The questions of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        half = "test" if name == "test" else "train"
        question, image, answer = (
            self._arrays[f"{half}_{part}"].astype(np.int64) for part in easy_vqa.PARTS[1:]
        )
        attributes = settle(self._said[question], image, self._arrays["answers"][answer])
        rows = np.arange(len(question)) if name == "test" else self._parts[name]
        labels = {"answer": classes(answer[rows])}
        labels |= {task: classes(attributes[task][image[rows]]) for task in ("shape", "colour")}
        return Questions(
            self.vocabulary,
            torch.from_numpy(self._arrays[f"{half}_images"]).to(self.device),
            {key: part[question[rows]].to(self.device) for key, part in self._encoded.items()},
            torch.from_numpy(image[rows]),
            {task: labels[task] for task in self.tasks},
            self.device,
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of the training questions."""
        questions = np.unique(self._arrays["train_question"][self._parts["train"]])
        return Vocabulary.of([tokenize(text) for text in self._said[questions]], min_count=1, buckets=1)

    @cached_property
    def _arrays(self) -> Arrays:
        return easy_vqa.load(self.data_dir)

    @property
    def _said(self) -> np.ndarray:
        return self._arrays["questions"]

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        """Indices of training questions; no image is in both splits."""
        images = self._arrays["train_question_image"]
        parts = split_groups(images, (0.8, 0.1, 0.1))
        return {"train": np.union1d(parts["train"], parts["test"]), "validation": parts["validation"]}

    @cached_property
    def _encoded(self) -> dict[str, Tensor]:
        """All distinct questions, encoded without spellings because all words are in the vocabulary."""
        encoded = self.vocabulary.encode([tokenize(text) for text in self._said.tolist()])
        return {"tokens": encoded["tokens"], "mask": encoded["mask"]}


class Questions(LabeledTasks):
    """Questions about images; returned by `EasyVQA.split`. `words` is the size of the embedding table."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        images: Tensor,
        questions: dict[str, Tensor],
        image: Tensor,
        labels: dict[str, Tensor],
        device: torch.device | str | None,
    ) -> None:
        def inputs(positions: Tensor) -> dict[str, Tensor]:
            pictures = images[image[positions].to(images.device)].movedim(-1, 1)
            words = {key: part[positions.to(part.device)] for key, part in questions.items()}
            return {"image": pictures.to(torch.get_default_dtype()).div_(255), **words}

        self.words = len(vocabulary)
        loss: dict[str, Loss] = {task: F.cross_entropy for task in labels}
        super().__init__(
            inputs,
            labels,
            loss=loss,
            metrics={task: {"accuracy": accuracy} for task in labels},
            outputs=OUTPUTS,
            device=device,
        )


def settle(questions: np.ndarray, image: np.ndarray, answers: np.ndarray) -> dict[str, np.ndarray]:
    """Shape and color of each image `0 .. max(image)` from questions and answers; -1 if unknown.

    >>> text = np.array(["is there not a red shape?", "what color is the circle?", "is there a circle?"])
    >>> settle(text, np.array([0, 0, 1]), np.array(["no", "red", "no"]))
    {'shape': array([ 0, -1]), 'colour': array([ 5, -1])}
    """
    labels = {task: np.full(int(image.max()) + 1, -1) for task in ("shape", "colour")}
    for question, index, answer in zip(questions.tolist(), image.tolist(), answers.tolist()):
        words = set(tokenize(question))
        if answer in ("yes", "no"):
            # "yes" confirms the question, but negates it if the question contains "not" or "no".
            true = words if (answer == "yes") != bool(_DENIES.search(question)) else set()
        else:
            true = words | {answer}
        for task, names in (("shape", SHAPES), ("colour", COLOURS)):
            for name in true.intersection(names):
                labels[task][index] = names.index(name)
    return labels
