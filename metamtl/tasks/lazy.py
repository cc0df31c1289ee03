"""Few-shot tasks whose examples are read when they are drawn, for data larger than the memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ..episode import Batch, Episode
from ..losses import Loss
from ..metrics import Metric
from .few_shot import FewShot

Read = Callable[[int, int], Tensor]


class LazyFewShot:
    """N-way K-shot tasks whose examples are read by a function when they are drawn.

    The tasks depend only on the generator that is passed to `sample`, so they are the same in any process.
    `EpisodeLoader` draws them in worker processes, ahead of the training.

    Args:
        read: `read(position, seed)` returns the example at a position in `labels`. All examples have one
            shape and dtype; `uint8` images are divided by 255. `seed` is a random number for this draw of
            the example, for random augmentation.
        labels: `[M]`, the class of each example.
        device: device of the episodes. In a worker process they stay on the CPU.
        options: `ways`, `shots`, `queries`, `classes`, `class_names` and the other arguments of `FewShot`
            that do not change the examples.

    Raises:
        ValueError, TypeError: as in `FewShot`.

    >>> read = lambda i, seed: torch.tensor([float(i) ** 2])
    >>> squares = LazyFewShot(read, [0, 0, 1, 1], ways=2, queries=1)
    >>> squares.sample(3, torch.Generator().manual_seed(0)).support.x.shape
    torch.Size([3, 2, 1])
    """

    loss: Loss = staticmethod(FewShot.loss)
    metrics: ClassVar[Mapping[str, Metric]] = FewShot.metrics

    def __init__(
        self, read: Read, labels: Any, *, device: torch.device | str | None = None, **options: Any
    ) -> None:
        # FewShot draws positions; integers stay unchanged.
        self._draws = FewShot(torch.arange(len(labels), device="cpu")[:, None], labels, **options)
        self._read = read
        self.device = device
        self.ways, self.class_names = self._draws.ways, self._draws.class_names

    @property
    def ids(self) -> list[int]:
        """Ids of all classes that tasks draw from, as in `Episode.task`."""
        return self._draws.ids

    def sample(self, num_tasks: int, rng: torch.Generator) -> Episode:
        """Draw `num_tasks` tasks using `rng` (a generator on the CPU) and read their examples.

        Returns:
            An `Episode` as that of `FewShot.sample`.

        Raises:
            ValueError: examples of different shapes, and what `read` raises.
        """
        draw = self._draws.sample(num_tasks, rng)
        support = None if draw.support is None else self._batch(draw.support, rng)
        episode = Episode(support, self._batch(draw.query, rng), draw.task, draw.ways)
        if self.device is None or get_worker_info() is not None:
            return episode
        return episode.to(self.device)

    def _batch(self, draw: Batch, rng: torch.Generator) -> Batch:
        positions = draw.x[..., 0]
        seeds = torch.randint(2**62, positions.shape, generator=rng, device="cpu")
        examples = [
            self._read(i, seed) for i, seed in zip(positions.flatten().tolist(), seeds.flatten().tolist())
        ]
        shapes = {(*example.shape, example.dtype) for example in examples}
        if len(shapes) > 1:
            raise ValueError(
                f"examples have different shapes or dtypes: {', '.join(map(str, list(shapes)[:5]))}; read"
                " must return one shape."
            )
        x = torch.stack(examples).unflatten(0, positions.shape)
        if x.dtype == torch.uint8:
            x = x.to(torch.get_default_dtype()).div_(255)
        return Batch(x, draw.y)
