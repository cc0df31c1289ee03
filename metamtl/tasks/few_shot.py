"""N-way K-shot episodes from any labelled images, vectors or data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..episode import Batch, Episode
from ..task import Metric, accuracy

Rotations = Literal["none", "episode", "classes"]


class FewShot:
    """Samples N-way K-shot classification tasks from labelled examples.

    Each task draws N classes, then for each class K support and Q query examples, all distinct;
    labels are `0 .. N-1` in the order of the draw.

    Args:
        images: `[M, H, W]`, `[M, C, H, W]`, or any `[M, ...]`, as an array or tensor. Integers are
            taken as bytes and divided by 255 when an episode is made, booleans are 0 or 1; `[M, H, W]`
            gets a channel axis.
        labels: `[M]` integers, the class of each example.
        ways: classes of a task, N.
        shots: support examples of a class, K.
        queries: query examples of a class, Q.
        classes: the labels to draw from (a split by class); all, where None.
        rotations: `"none"`; `"episode"`: every class of every task is turned by a random multiple of
            90 degrees, as in the MAML authors' code; `"classes"`: each class turned by 90, 180 or 270
            degrees is a class of its own, with the ids `label + k * (largest label + 1)`.
        device: where the examples are kept and the episodes are made.

    Raises:
        ValueError: more ways than classes, or a class with fewer than K + Q examples.

    >>> digits = FewShot(np.zeros((60, 8, 8), np.uint8), np.arange(60) // 20, ways=3, shots=1, queries=5)
    >>> episode = digits.sample(4, torch.Generator().manual_seed(0))
    >>> episode.support.x.shape, episode.query.y.shape, episode.task.shape
    (torch.Size([4, 3, 1, 8, 8]), torch.Size([4, 15]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor | Iterable[int],
        *,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        classes: Iterable[int] | None = None,
        rotations: Rotations = "none",
        device: torch.device | str | None = None,
    ) -> None:
        if rotations not in ("none", "episode", "classes"):
            raise ValueError(f"rotations={rotations!r} is not one of 'none', 'episode', 'classes'.")
        if min(ways, shots, queries) < 1:
            raise ValueError(f"ways={ways}, shots={shots}, queries={queries}: each must be at least 1.")
        values = _tensor(images)
        codes = torch.as_tensor(labels if hasattr(labels, "shape") else list(labels)).long().cpu()
        if values.shape[:1] != codes.shape:
            raise ValueError(
                f"images have shape {list(values.shape)}, labels {list(codes.shape)};"
                " there must be one label for each image."
            )
        if rotations != "none" and (values.dim() < 3 or values.shape[-1] != values.shape[-2]):
            raise ValueError(
                f"rotations={rotations!r} needs square images, found shape {list(values.shape)}."
            )
        self.ways, self.shots, self.queries, self.rotations = ways, shots, queries, rotations
        self.images = values.to(device) if device is not None else values
        # A class named twice is one class: a task must not hold it under two labels.
        named = codes.unique().tolist() if classes is None else dict.fromkeys(map(int, classes))
        wanted = torch.tensor(list(named), dtype=torch.long)
        self._members, self._counts = _members(codes, wanted)
        turns = 4 if rotations == "classes" else 1
        stride = int(codes.max()) + 1 if codes.numel() else 0
        self._ids = torch.cat([wanted + turn * stride for turn in range(turns)])
        self._check(wanted)

    loss = staticmethod(F.cross_entropy)
    metrics: ClassVar[Mapping[str, Metric]] = {"accuracy": accuracy}

    @property
    def ids(self) -> list[int]:
        """The id of every class that a task can hold, as they stand in `Episode.task`."""
        return self._ids.tolist()

    @classmethod
    def from_dataset(
        cls, dataset: Any, label: Callable[[Any], int] | None = None, **options: Any
    ) -> FewShot:
        """From any torch `Dataset`.

        `label(item)` gives an item's class; without it an item is a pair `(image, class)`. The image is
        `item[0]`, or the item itself where it is no tuple. `options` are those of `FewShot`.
        """
        images, labels = [], []
        for index in range(len(dataset)):
            item = dataset[index]
            images.append(_tensor(item[0] if isinstance(item, (tuple, list)) else item))
            labels.append(int(label(item) if label is not None else item[1]))
        return cls(torch.stack(images), labels, **options)

    def sample(self, num_tasks: int, rng: torch.Generator) -> Episode:
        """Draw `num_tasks` tasks with the random numbers of `rng` (a generator on the CPU).

        Returns:
            An `Episode` with `support.x` `[T, N*K, ...]`, `query.x` `[T, N*Q, ...]`, labels beside them
            and the class ids `[T, N]` as `task`. Class by class, the examples of class 0 first.
        """
        total = self.shots + self.queries
        # Positions of classes and examples are drawn on the CPU, so that no device is waited for.
        chosen = torch.rand(num_tasks, len(self._ids), generator=rng, device="cpu").topk(self.ways).indices
        rows, turns = chosen % len(self._members), chosen // len(self._members)
        keys = torch.rand(num_tasks, self.ways, self._members.shape[1], generator=rng, device="cpu")
        absent = torch.arange(self._members.shape[1], device="cpu") >= self._counts[rows][..., None]
        picked = keys.masked_fill_(absent, -1.0).topk(total, -1).indices
        positions = self._members[rows].gather(-1, picked)
        if self.rotations == "episode":
            turns = torch.randint(4, (num_tasks, self.ways), generator=rng, device="cpu")
        x = self._pictures(positions, turns)
        labels = torch.arange(self.ways, device="cpu").repeat_interleave(total).view(1, self.ways, total)
        y = labels.expand(num_tasks, -1, -1).to(x.device, non_blocking=True)
        return Episode(
            support=Batch(x[:, :, : self.shots].flatten(1, 2), y[:, :, : self.shots].flatten(1, 2)),
            query=Batch(x[:, :, self.shots :].flatten(1, 2), y[:, :, self.shots :].flatten(1, 2)),
            task=self._ids[chosen].to(x.device, non_blocking=True),
            ways=self.ways,
        )

    def _pictures(self, positions: Tensor, turns: Tensor) -> Tensor:
        """Examples at `positions` `[T, N, n]` as floats, each class turned by `turns` `[T, N]` times 90."""
        device = self.images.device
        x = self.images[positions.to(device, non_blocking=True)]
        if not x.is_floating_point():
            scale = 1 if x.dtype == torch.bool else 255
            x = x.to(torch.get_default_dtype()).div_(scale)
        if self.images.dim() == 3:
            x = x.unsqueeze(3)
        if self.rotations != "none":
            turned = turns.to(device, non_blocking=True).view(*turns.shape, *[1] * (x.dim() - 2))
            x = torch.where(turned % 2 == 1, x.rot90(1, (-2, -1)), x)
            x = torch.where(turned >= 2, x.rot90(2, (-2, -1)), x)
        return x

    def _check(self, wanted: Tensor) -> None:
        if self.ways > len(self._ids):
            raise ValueError(
                f"{self.ways}-way tasks need {self.ways} classes, but there are {len(self._ids)};"
                " lower ways or give more classes."
            )
        total = self.shots + self.queries
        short = (self._counts < total).nonzero().flatten().tolist()
        if short:
            named = ", ".join(f"class {int(wanted[i])} has {int(self._counts[i])}" for i in short[:5])
            more = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
            raise ValueError(
                f"{self.shots} shots + {self.queries} queries need {total} examples of each class, but"
                f" {named}{more}; lower shots or queries, or leave these classes out."
            )


def _tensor(values: Any) -> Tensor:
    """A tensor of the same numbers, sharing their memory where it may be written to."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    # Pillow images and memory maps are read-only, of which torch warns: those are copied.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _members(labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of each wanted class, padded to the largest, `[C, most]`; and their counts `[C]`."""
    order = labels.argsort(stable=True)
    found, sizes = labels[order].unique_consecutive(return_counts=True)
    starts = dict(zip(found.tolist(), zip((sizes.cumsum(0) - sizes).tolist(), sizes.tolist())))
    spans = [starts.get(int(code), (0, 0)) for code in wanted]
    most = max((size for _, size in spans), default=0)
    members = torch.zeros(len(spans), max(most, 1), dtype=torch.long)
    for row, (start, size) in enumerate(spans):
        members[row, :size] = order[start : start + size]
    return members, torch.tensor([size for _, size in spans], dtype=torch.long)
