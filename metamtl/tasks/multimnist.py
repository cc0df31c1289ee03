"""MultiMNIST: classify two overlapping digits, or classify one and reconstruct the other."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar, NamedTuple

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

DIGIT, CANVAS, SHIFT = 28, 36, 4  # pixels
HELD = 6  # the last sixth of the training digits (10,000 of 60,000) is the validation set
TASKS = ("left", "right")


class Pairs(NamedTuple):
    """Digits and their shifts for M images.

    Attributes:
        digits: `[M, 2]`, indices of the left and the right digit in MNIST.
        shifts: `[M, 2, 2]`, vertical and horizontal shift of each digit from its corner towards the center.
    """

    digits: Tensor
    shifts: Tensor


class MultiMNIST:
    """Two MNIST digits in one image, one at the top left and one at the bottom right.

    Each digit of 28x28 pixels is placed on a canvas of 36x36, shifted by 0 to 4 pixels from its corner;
    overlapping pixels take the maximum (Sabour, Frosst, Hinton 2017, https://arxiv.org/abs/1710.09829).
    `size=36` keeps the canvas, as in Lin et al. 2019 (https://arxiv.org/abs/1912.12854), where other pairs
    are drawn; `size=28` resizes it, as in Sener and Koltun 2018 (https://arxiv.org/abs/1810.04650), whose
    digits are not shifted, and resized to the nearest pixel instead of bilinearly. Both have no validation
    set.

    | task | `reconstruct=False` | `reconstruct=True` |
    |---|---|---|
    | `left` | class of the left digit, 10 classes | the same |
    | `right` | class of the right digit, 10 classes | image of the right digit alone, at its position |

    The pairs are fixed lists drawn with `seed`: for training from the first 50,000 digits of MNIST's
    training set, for validation from its last 10,000, for the test from MNIST's test set.

    Args:
        reconstruct: whether the right digit is reconstructed instead of classified.
        tasks: the tasks to keep.
        size: height and width of the images.
        pairs: number of images in the three splits.
        seed: seed of the pairs.
        data_dir: the folder that contains `mnist/mnist.npz`.
        device: device of the digits and the images.

    Raises:
        FileNotFoundError, ValueError: on first use, if the data is missing or damaged.

    >>> family = MultiMNIST(reconstruct=True)
    >>> episodes = family.split("train").sample(64, torch.Generator())  # doctest: +SKIP
    >>> episodes["right"].query.x.shape, episodes["right"].query.y.shape  # doctest: +SKIP
    (torch.Size([64, 1, 28, 28]), torch.Size([64, 1, 28, 28]))
    """

    protocol: ClassVar[str] = (
        "mnist.npz, training and test digits as published, validation from the last 10,000 training digits"
    )

    def __init__(
        self,
        *,
        reconstruct: bool = False,
        tasks: Iterable[str] | None = None,
        size: int = 28,
        pairs: tuple[int, int, int] = (60_000, 10_000, 10_000),
        seed: int = 0,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        if len(pairs) != 3 or min(pairs) < 1:
            raise ValueError(f"pairs={tuple(pairs)} must be three numbers of images, each at least 1.")
        if size < 1:
            raise ValueError(f"size={size} must be a positive number of pixels, such as 28 or 36.")
        self.tasks = chosen(tasks, TASKS)
        self.reconstruct, self.size, self.pairs, self.seed = reconstruct, size, tuple(pairs), seed
        self.data_dir, self.device = data_dir, device

    def split(self, name: str) -> LabeledTasks:
        """The images of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        kind = "test" if name == "test" else "train"
        images = self._images[kind]
        labels = torch.from_numpy(self._arrays[f"{kind}_labels"]).long()
        index = SPLITS.index(name)
        num_train = len(labels) - len(labels) // HELD
        first, last = ((0, num_train), (num_train, len(labels)), (0, len(labels)))[index]
        pairs = draw_pairs(range(first, last), self.pairs[index], np.random.default_rng((self.seed, index)))

        def pictures(positions: Tensor) -> Tensor:
            return render(images, Pairs(*(part[positions] for part in pairs)), size=self.size)

        def right_alone(positions: Tensor) -> Tensor:
            return render(images, Pairs(*(part[positions] for part in pairs)), (1,), self.size)

        draws = self.reconstruct
        classes: dict[str, Loss] = {"left": F.cross_entropy, "right": F.cross_entropy}
        metrics: dict[str, dict[str, Metric]] = {task: {"accuracy": accuracy} for task in TASKS}
        answers = {task: labels[pairs.digits[:, side]] for side, task in enumerate(TASKS)}
        return LabeledTasks(
            pictures,
            {task: right_alone if draws and task == "right" else answers[task] for task in self.tasks},
            loss=classes | ({"right": image_mse} if draws else {}),
            metrics=metrics | ({"right": {"mse": mse}} if draws else {}),
            outputs={"left": 10, "right": self.size**2 if draws else 10},
            count=self.pairs[index],
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
    """Draw `count` pairs of different digits; each side repeats random permutations of `digits`."""
    if len(digits) < 2:
        raise ValueError(f"pairs need at least 2 digits, found {len(digits)}.")

    def shuffled() -> np.ndarray:
        rounds = -(-count // len(digits))
        return np.concatenate([rng.permutation(len(digits)) for _ in range(rounds)])[:count]

    left, right = shuffled(), shuffled()
    right = np.where(left == right, (right + 1) % len(digits), right)
    both = torch.from_numpy(np.stack([left, right], 1) + digits.start)
    return Pairs(both, torch.from_numpy(rng.integers(0, SHIFT + 1, (count, 2, 2))))


def render(images: Tensor, pairs: Pairs, sides: Iterable[int] = (0, 1), size: int = 28) -> Tensor:
    """Render images of pairs, `[n, 1, size, size]` in [0, 1], with the digits of these sides.

    Args:
        images: `[M, 28, 28]`, `uint8`.
        pairs: the digits and their shifts.
        sides: 0 for the left digit, 1 for the right one.
    """
    device, count = images.device, len(pairs.digits)
    canvas = torch.zeros(count, CANVAS, CANVAS, device=device)
    pixel = torch.arange(DIGIT, device=device)
    for side in sides:
        shift = pairs.shifts[:, side].to(device)
        corner = shift if side == 0 else CANVAS - DIGIT - shift
        rows, columns = corner[:, :1] + pixel, corner[:, 1:] + pixel
        digits = images[pairs.digits[:, side].to(device)].to(canvas.dtype) / 255
        layer = torch.zeros_like(canvas)
        layer[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None]] = (
            digits
        )
        canvas = canvas.maximum(layer)
    return F.interpolate(canvas[:, None], size=(size, size), mode="bilinear", align_corners=False)
