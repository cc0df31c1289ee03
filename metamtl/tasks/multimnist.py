"""Two digits in one picture: read both, or read one and draw the other."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets import mnist
from ..datasets.files import SPLITS, check_split
from ..datasets.prepared import Arrays, Dir
from ..datasets.preprocess import chosen
from ..losses import Loss, image_mse
from ..metrics import Metric, accuracy, mse
from .labeled import LabeledTasks

SIZE, CANVAS, SHIFT = 28, 36, 4
HELD = 6  # the last sixth of the training digits, 10,000 of 60,000, is for validation
TASKS = ("left", "right")


class Pairs(NamedTuple):
    """Which digits stand in each of M pictures, and where.

    Attributes:
        digits: `[M, 2]`, positions of the left and the right digit in MNIST.
        shifts: `[M, 2, 2]`, how far each is moved from its corner towards the middle: down, to the side.
    """

    digits: Tensor
    shifts: Tensor


class MultiMNIST:
    """Two MNIST digits in one picture, one at the top left and one at the bottom right.

    Each digit of 28x28 pixels lies on a canvas of 36x36, moved by 0 to 4 pixels from its corner; where
    they overlap the lighter pixel counts; the canvas is resized to 28x28 (Sabour, Frosst, Hinton 2017,
    https://arxiv.org/abs/1710.09829; Sener and Koltun 2018, https://arxiv.org/abs/1810.04650). Differs
    from Sener and Koltun in: 1. digits are shifted, as by Lin et al. 2019
    (https://arxiv.org/abs/1912.12854), rather than fixed; 2. resizing is bilinear rather than to the
    nearest pixel; 3. there is a validation set.

    | task | `reconstruct=False` | `reconstruct=True` |
    |---|---|---|
    | `left` | which digit is at the left: 10 classes | the same |
    | `right` | which digit is at the right: 10 classes | a picture of the right digit alone, in its place |

    The pairs are a fixed list, drawn from `seed`: for training from the first 50,000 digits of MNIST's
    training set, for validation from its last 10,000, for the test from MNIST's test set.

    Args:
        reconstruct: whether the right digit is drawn rather than read.
        tasks: the tasks to keep.
        pairs: pictures of the three splits.
        seed: of the pairs.
        data_dir: the folder in which `mnist/mnist.npz` lies, as for every set.
        device: where the digits are kept and the pictures are made.

    Raises:
        FileNotFoundError, ValueError: on first use, the data is missing or damaged.

    >>> family = MultiMNIST(reconstruct=True)
    >>> episodes = family.split("train").sample(64, torch.Generator())  # doctest: +SKIP
    >>> episodes["right"].query.x.shape, episodes["right"].query.y.shape  # doctest: +SKIP
    (torch.Size([64, 1, 28, 28]), torch.Size([64, 1, 28, 28]))
    """

    def __init__(
        self,
        *,
        reconstruct: bool = False,
        tasks: Iterable[str] | None = None,
        pairs: tuple[int, int, int] = (60_000, 10_000, 10_000),
        seed: int = 0,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        if len(pairs) != 3 or min(pairs) < 1:
            raise ValueError(f"pairs={tuple(pairs)} must be three numbers of pictures, each at least 1.")
        self.tasks = chosen(tasks, TASKS)
        self.reconstruct, self.pairs, self.seed = reconstruct, tuple(pairs), seed
        self.data_dir, self.device = data_dir, device

    def split(self, name: str) -> LabeledTasks:
        """The pictures of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        kind = "test" if name == "test" else "train"
        images = self._images[kind]
        labels = torch.from_numpy(self._arrays[f"{kind}_labels"]).long()
        at = SPLITS.index(name)
        kept = len(labels) - len(labels) // HELD
        first, last = ((0, kept), (kept, len(labels)), (0, len(labels)))[at]
        found = draw_pairs(range(first, last), self.pairs[at], np.random.default_rng((self.seed, at)))

        def pictures(positions: Tensor) -> Tensor:
            return render(images, Pairs(*(part[positions] for part in found)))

        def right_alone(positions: Tensor) -> Tensor:
            return render(images, Pairs(*(part[positions] for part in found)), (1,))

        draws = self.reconstruct
        classes: dict[str, Loss] = {"left": F.cross_entropy, "right": F.cross_entropy}
        metrics: dict[str, dict[str, Metric]] = {task: {"accuracy": accuracy} for task in TASKS}
        answers = {task: labels[found.digits[:, side]] for side, task in enumerate(TASKS)}
        return LabeledTasks(
            pictures,
            {task: right_alone if draws and task == "right" else answers[task] for task in self.tasks},
            loss=classes | ({"right": image_mse} if draws else {}),
            metrics=metrics | ({"right": {"mse": mse}} if draws else {}),
            outputs={"left": 10, "right": SIZE * SIZE if draws else 10},
            count=self.pairs[at],
            device=self.device,
        )

    @cached_property
    def _arrays(self) -> Arrays:
        return mnist.load(self.data_dir)

    @cached_property
    def _images(self) -> dict[str, Tensor]:
        return {
            kind: torch.from_numpy(self._arrays[f"{kind}_images"]).to(self.device)
            for kind in ("train", "test")
        }


def draw_pairs(digits: range, count: int, rng: np.random.Generator) -> Pairs:
    """`count` pairs of different digits out of `digits`, each side dealt out in shuffled rounds."""
    if len(digits) < 2:
        raise ValueError(f"pairs need at least 2 digits, found {len(digits)}.")

    def dealt() -> np.ndarray:
        rounds = -(-count // len(digits))
        return np.concatenate([rng.permutation(len(digits)) for _ in range(rounds)])[:count]

    left, right = dealt(), dealt()
    right = np.where(left == right, (right + 1) % len(digits), right)
    both = torch.from_numpy(np.stack([left, right], 1) + digits.start)
    return Pairs(both, torch.from_numpy(rng.integers(0, SHIFT + 1, (count, 2, 2))))


def render(images: Tensor, pairs: Pairs, sides: Iterable[int] = (0, 1)) -> Tensor:
    """The pictures of pairs, `[n, 1, 28, 28]` from 0 to 1, with the digits of these sides.

    Args:
        images: bytes `[M, 28, 28]`.
        pairs: which digits, and where.
        sides: 0 for the left digit, 1 for the right one.
    """
    device, count = images.device, len(pairs.digits)
    canvas = torch.zeros(count, CANVAS, CANVAS, device=device)
    pixel = torch.arange(SIZE, device=device)
    for side in sides:
        shift = pairs.shifts[:, side].to(device)
        corner = shift if side == 0 else CANVAS - SIZE - shift
        rows, columns = corner[:, :1] + pixel, corner[:, 1:] + pixel
        digits = images[pairs.digits[:, side].to(device)].to(canvas.dtype) / 255
        alone = torch.zeros_like(canvas)
        alone[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None]] = (
            digits
        )
        canvas = canvas.maximum(alone)
    return F.interpolate(canvas[:, None], size=(SIZE, SIZE), mode="bilinear", align_corners=False)
