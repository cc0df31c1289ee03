"""easy-VQA: a drawn shape, a question about it, and the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

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
    """Answers to questions about pictures of one shape (Zhou 2019, https://github.com/vzhou842/easy-VQA).

    | task | labels |
    |---|---|
    | `answer` | one of 13 to the question: yes, no, a shape, a colour |
    | `shape` | of the picture: circle, rectangle, triangle |
    | `colour` | of the picture: one of 8 |

    Shape and colour are not in the data as such; they are what the questions and answers about the picture
    settle ("is there a red shape?" yes; "what color is the circle?"). Where they do not, the label is
    missing. The input is a dict of `image` `[n, 3, 64, 64]` from 0 to 1, and of the question's `tokens`
    and `mask` `[n, L]`. Test: the official one; validation: a tenth of the training pictures, with all of
    their questions. The vocabulary is that of the training questions.

    Args:
        tasks: the tasks to keep.
        data_dir: the folder in which `easy_vqa/easy_vqa.npz` lies.
        device: where the tensors are kept and the episodes are made.

    Raises:
        FileNotFoundError, ValueError: on first use, the data is missing or damaged.

    >>> train = EasyVQA().split("train")  # doctest: +SKIP
    >>> train.sample(64, torch.Generator())["answer"].query.x["image"].shape  # doctest: +SKIP
    torch.Size([64, 3, 64, 64])
    """

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
        settled = settle(self._said[question], image, self._arrays["answers"][answer])
        at = np.arange(len(question)) if name == "test" else self._parts[name]
        labels = {"answer": classes(answer[at])}
        labels |= {task: classes(settled[task][image[at]]) for task in ("shape", "colour")}
        return Questions(
            self.vocabulary,
            torch.from_numpy(self._arrays[f"{half}_images"]).to(self.device),
            {key: part[question[at]].to(self.device) for key, part in self._encoded.items()},
            torch.from_numpy(image[at]),
            {task: labels[task] for task in self.tasks},
            self.device,
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of the training questions."""
        asked = np.unique(self._arrays["train_question"][self._parts["train"]])
        return Vocabulary.of([tokenize(said) for said in self._said[asked]], min_count=1, buckets=1)

    @cached_property
    def _arrays(self) -> Arrays:
        return easy_vqa.load(self.data_dir)

    @property
    def _said(self) -> np.ndarray:
        return self._arrays["questions"]

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        """Positions among the training questions; no picture is in both."""
        images = self._arrays["train_question_image"]
        found = split_groups(images, (0.8, 0.1, 0.1))
        return {"train": np.union1d(found["train"], found["test"]), "validation": found["validation"]}

    @cached_property
    def _encoded(self) -> dict[str, Tensor]:
        """Every different question; without spellings, for all words are known."""
        found = self.vocabulary.encode([tokenize(said) for said in self._said.tolist()])
        return {"tokens": found["tokens"], "mask": found["mask"]}


class Questions(LabeledTasks):
    """Questions about pictures; made by `EasyVQA.split`. `words` is what an embedding has to have."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        images: Tensor,
        questions: dict[str, Tensor],
        image: Tensor,
        labels: dict[str, Tensor],
        device: torch.device | str | None,
    ) -> None:
        def asked(positions: Tensor) -> dict[str, Tensor]:
            pictures = images[image[positions].to(images.device)].movedim(-1, 1)
            words = {key: part[positions.to(part.device)] for key, part in questions.items()}
            return {"image": pictures.to(torch.get_default_dtype()).div_(255), **words}

        self.words = len(vocabulary)
        loss: dict[str, Loss] = {task: F.cross_entropy for task in labels}
        super().__init__(
            asked,
            labels,
            loss=loss,
            metrics={task: {"accuracy": accuracy} for task in labels},
            outputs=OUTPUTS,
            device=device,
        )


def settle(questions: np.ndarray, image: np.ndarray, answers: np.ndarray) -> dict[str, np.ndarray]:
    """Shape and colour of each picture `0 .. max(image)`, by questions and answers; -1 where not settled.

    >>> asked = np.array(["is there not a red shape?", "what color is the circle?", "is there a circle?"])
    >>> settle(asked, np.array([0, 0, 1]), np.array(["no", "red", "no"]))
    {'shape': array([ 0, -1]), 'colour': array([ 5, -1])}
    """
    found = {task: np.full(int(image.max()) + 1, -1) for task in ("shape", "colour")}
    for said, picture, answer in zip(questions.tolist(), image.tolist(), answers.tolist()):
        words = set(tokenize(said))
        if answer in ("yes", "no"):
            # "yes" affirms what is asked; to a question with "not" or "no" it denies it.
            true = words if (answer == "yes") != bool(_DENIES.search(said)) else set()
        else:
            true = words | {answer}
        for task, names in (("shape", SHAPES), ("colour", COLOURS)):
            for name in true.intersection(names):
                found[task][picture] = names.index(name)
    return found
