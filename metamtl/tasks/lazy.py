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
from .arrays import as_floats, image_scale, widened
from .few_shot import FewShot
from .items import ItemReader, check_dataset, names_of

Read = Callable[[int, int], Tensor]


class LazyFewShot:
    """N-way K-shot tasks whose examples are read by a function when they are drawn.

    The tasks depend only on the generator that is passed to `sample`, so they are the same in any process.
    `EpisodeLoader` draws them in worker processes, ahead of the training.

    Args:
        read: `read(position, seed)` returns the example at a position in `labels`. All examples have one
            shape and dtype, which decide how they are interpreted as in `FewShot`: `uint8` images are
            divided by 255. `seed` is a random number for this draw of the example, for random augmentation.
        labels: `[M]`, the class of each example.
        device: device of the episodes. In a worker process they stay on the CPU.
        options: `ways`, `shots`, `queries`, `classes`, `class_names`, `balance` and `tasks_per_class_set`
            of `FewShot`.

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

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        labels: Any = None,
        *,
        image: Callable[[Any], Any] | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> LazyFewShot:
        """Build tasks from a torch `Dataset` whose items are read, and randomly transformed, when drawn.

        Items and the names of classes are as in `FewShot.from_dataset`. For each item, the global
        generators of torch, Python and NumPy start at a seed that depends only on the generator that is
        passed to `sample`, so random transforms are the same in any process.

        Args:
            dataset: a data set with a length and integer indices.
            labels: `[M]`, the class of each item; if None, `dataset.targets`, as in torchvision.
            image: maps an item to its image; if None, `item[0]`, or the item itself if it is not a tuple.
            device, options: as in `LazyFewShot`.

        Raises:
            TypeError: an `IterableDataset` or a `DataLoader`; no labels; `targets` that the data set's
                `target_transform` changes.
            ValueError: an empty data set; the number of labels is not that of the items. On a draw: an item
                that cannot be read (with its index).

        >>> from torch.utils.data import TensorDataset
        >>> clouds = TensorDataset(torch.randn(40, 8))
        >>> new = LazyFewShot.from_dataset(clouds, torch.arange(40) // 10, ways=3, queries=5)
        >>> new.sample(2, torch.Generator().manual_seed(0)).query.x.shape
        torch.Size([2, 15, 8])
        """
        check_dataset(dataset)
        kind = type(dataset).__name__
        if labels is None:
            labels = getattr(dataset, "targets", None)
            if labels is None:
                raise TypeError(
                    f"the {kind} has no attribute targets, and the class of each item must be known before"
                    " items are read; pass labels=[...]."
                )
            if getattr(dataset, "target_transform", None) is not None:
                raise TypeError(
                    f"the {kind} has a target_transform, which is not applied to its attribute targets;"
                    " pass labels=[...] with the transformed classes."
                )
        if len(labels) != len(dataset):
            raise ValueError(
                f"the {kind} has {len(dataset)} items, but there are {len(labels)} labels; pass one label"
                " per item."
            )
        listed = labels.tolist() if hasattr(labels, "tolist") else labels
        options.setdefault("class_names", names_of(dataset, listed))
        return cls(ItemReader(dataset, image), labels, device=device, **options)

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
        if support is not None and not draw.query.x.numel():  # no query, so none has a shape
            query = Batch(support.x[:, :0], draw.query.y)
        else:
            query = self._batch(draw.query, rng)
        episode = Episode(support, query, draw.task, draw.ways)
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
        x = torch.stack(examples)
        scale = image_scale(x)
        if scale is not None and x.dim() == 3:
            x = x.unsqueeze(1)
        return Batch(as_floats(widened(x), scale).unflatten(0, positions.shape), draw.y)
