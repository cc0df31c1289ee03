"""N-way K-shot episodes from any labeled images, vectors or data set."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..episode import Episode
from ..metrics import Metric, accuracy
from .arrays import as_floats, as_tensor, class_ids, image_scale, widened
from .draws import check_counts, distinct, distinct_of, episode_of, members, unequal
from .items import names_of, read_items

Rotations = Literal["none", "episode", "classes"]
Balance = Literal["equal", "random", "own"]


class FewShot:
    """N-way K-shot classification tasks sampled from labeled examples.

    Each task draws N classes, then K support and Q query examples of each class, all distinct. Labels are
    `0 .. N-1` in the order in which the classes are drawn.

    The dtype of the examples decides how they are interpreted:

    | dtype and shape | contents of a task |
    |---|---|
    | `uint8` `[M, H, W]`, `[M, C, H, W]` | an image, divided by 255 |
    | `uint16`, same shapes | an image, divided by 65535 |
    | `bool` | 0 or 1 as floats; an image if the shape is one of the above |
    | any other integers (token ids, counts) | the integers, unchanged |
    | floats | the values, unchanged |

    An image `[M, H, W]` gets a channel axis, `[M, 1, H, W]`. Floats `[M, L, F]` do not, because they may
    be time series: pass grayscale float images as `images[:, None]`.

    Args:
        images: `[M, ...]`, an array, tensor or list.
        labels: `[M]`, the class of each example: integers, floats with integer values, or strings. Strings
            are mapped to the ids `0 .. C-1` in sorted order.
        ways: classes per task, N.
        shots: support examples per class, K. With 0, episodes have no support set (for joint training).
        queries: query examples per class, Q. With 0, the query set is empty (for Reptile, which adapts to
            the support set and reads nothing else).
        classes: the labels to draw from (a split by class); if None, all labels.
        rotations: `"none"`; `"episode"`: every class of every task is rotated by a random multiple of
            90 degrees, as in the MAML authors' code; `"classes"`: each class rotated by 0, 90, 180 or 270
            degrees is a separate class with the id `4 * label + turns`. No task contains two rotations
            of the same class.
        balance: `"equal"`: K support and Q query examples of each class. Otherwise a task has N*K and N*Q
            in total, divided unequally, with at least one support example of each class. `"random"`: by
            class proportions that are drawn for each task, uniformly from the simplex (a symmetric
            Dirichlet distribution, as in https://arxiv.org/abs/2204.11181), the same for support and query
            set. `"own"`: as in a random sample of all examples of the N classes.
        tasks_per_class_set: number of consecutive tasks with the same classes (in the same order).
        class_names: the names of the classes by id, for error messages. If labels are strings, this list
            defines their ids, so that splits from different arrays use the same ids.
        device: device of the examples and the episodes.

    Attributes:
        class_names: `class_names[id]` is the name of a class; empty if classes have no names.

    Raises:
        ValueError: more ways than classes, a class with fewer than K + Q examples, labels that are not
            classes.
        TypeError: examples that are not numeric; `ways`, `shots` or `queries` that are not integers.

    >>> digits = FewShot(np.zeros((60, 8, 8), np.uint8), np.arange(60) // 20, ways=3, shots=1, queries=5)
    >>> episode = digits.sample(4, torch.Generator().manual_seed(0))
    >>> episode.support.x.shape, episode.query.y.shape, episode.task.shape
    (torch.Size([4, 3, 1, 8, 8]), torch.Size([4, 15]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        images: np.ndarray | Tensor | Sequence[Any],
        labels: np.ndarray | Tensor | Iterable[Any],
        *,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        classes: Iterable[Any] | None = None,
        rotations: Rotations = "none",
        balance: Balance = "equal",
        tasks_per_class_set: int = 1,
        class_names: Sequence[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if rotations not in ("none", "episode", "classes"):
            raise ValueError(f"rotations={rotations!r} is not one of 'none', 'episode', 'classes'.")
        if balance not in ("equal", "random", "own"):
            raise ValueError(f"balance={balance!r} is not one of 'equal', 'random', 'own'.")
        self.ways, self.shots, self.queries = (operator.index(n) for n in (ways, shots, queries))
        self.balance, self.tasks_per_class_set = balance, operator.index(tasks_per_class_set)
        check_counts(shots, queries)
        if min(ways, tasks_per_class_set) < 1:
            raise ValueError(
                f"ways={ways}, tasks_per_class_set={tasks_per_class_set}: each must be at least 1."
            )
        if isinstance(images, list) and images and hasattr(images[0], "getbands"):
            raise TypeError("images is a list of Pillow images; use FewShot.from_dataset(pairs).")
        values = as_tensor(images, "images")
        self._scale = image_scale(values)
        values = widened(values)
        codes, self.class_names, number = class_ids(labels, class_names)
        if values.shape[:1] != codes.shape:
            raise ValueError(
                f"images have shape {list(values.shape)}, labels {list(codes.shape)};"
                " there must be one label per image."
            )
        if rotations != "none" and (values.dim() < 3 or values.shape[-1] != values.shape[-2]):
            raise ValueError(
                f"rotations={rotations!r} requires square images, but images have shape"
                f" {list(values.shape)}."
            )
        self.rotations = rotations
        self.images = values.to(device) if device is not None else values
        # Duplicates are removed: a class must not occur in a task under two labels.
        self._classes = codes.unique() if classes is None else _chosen(classes, number)
        self._order, self._starts, self._counts = members(codes, self._classes)
        self._check()

    loss = staticmethod(F.cross_entropy)
    metrics: ClassVar[Mapping[str, Metric]] = {"accuracy": accuracy}

    @property
    def ids(self) -> list[int]:
        """Ids of all classes that tasks draw from, as in `Episode.task`."""
        if self.rotations != "classes":
            return self._classes.tolist()
        return [4 * label + turns for turns in range(4) for label in self._classes.tolist()]

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        label: Callable[[Any], Any] | None = None,
        *,
        image: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> FewShot:
        """Build tasks from any torch `Dataset` with a length, or from a list of items.

        Every item is read once and kept in memory, so a random transform of the data set is applied only
        once; `LazyFewShot.from_dataset` reads items when they are drawn. Pillow images become `[C, H, W]`,
        or `[H, W]` if they have one channel. If the data set has a list `classes`, as in torchvision, it
        provides the class names.

        Args:
            dataset: items are pairs `(image, class)`, unless `image` and `label` are passed.
            label: maps an item to its class; if None, `item[1]`.
            image: maps an item to its image; if None, `item[0]`, or the item itself if it is not a tuple.
            options: the other arguments of `FewShot`.

        Raises:
            TypeError: an `IterableDataset` or a `DataLoader`; an item that is not a pair (with its index).
            ValueError: an empty data set; an item that cannot be read or has another shape (with its
                index).

        >>> pairs = [({"pixels": torch.zeros(3, 8, 8)}, "cat" if i < 9 else "dog") for i in range(18)]
        >>> pets = FewShot.from_dataset(pairs, image=lambda item: item[0]["pixels"], ways=2, queries=5)
        >>> pets.class_names
        ('cat', 'dog')
        """
        images, labels = read_items(dataset, image, label)
        if label is None:
            options.setdefault("class_names", names_of(dataset, labels))
        return cls(images, labels, **options)

    def sample(self, num_tasks: int, rng: torch.Generator) -> Episode:
        """Draw `num_tasks` tasks using `rng` (a generator on the CPU).

        Returns:
            An `Episode` with `support.x` `[T, N*K, ...]` (or no support, for K = 0), `query.x`
            `[T, N*Q, ...]` (`[T, 0, ...]` for Q = 0), their labels, and the class ids `[T, N]` as `task`.
            Examples are ordered by class, starting with class 0.
        """
        # Classes and examples are drawn on the CPU, which avoids synchronizing with the device.
        sets = torch.arange(num_tasks, device="cpu") // self.tasks_per_class_set
        sizes = torch.full((int(sets[-1]) + 1 if num_tasks else 0,), len(self._classes), device="cpu")
        rows = distinct(sizes, self.ways, rng)[sets]
        positions, y = self._equal(rows, rng) if self.balance == "equal" else self._unequal(rows, rng)
        ids, turns = self._classes[rows], torch.zeros_like(rows)
        if self.rotations != "none":
            turns = torch.randint(4, (len(sizes), self.ways), generator=rng, device="cpu")[sets]
        if self.rotations == "classes":
            ids = 4 * ids + turns
        x = self._pictures(positions, turns.gather(1, y))
        y = y.to(x.device, non_blocking=True)
        ids = ids.to(x.device, non_blocking=True)
        return episode_of(x, y, self.ways * self.shots, ids, ways=self.ways)

    def _equal(self, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions and labels `[T, N*K + N*Q]`: K + Q examples of each class in `rows` `[T, N]`."""
        drawn = distinct(self._counts[rows], self.shots + self.queries, rng)
        positions = self._order[self._starts[rows][..., None] + drawn]
        labels = torch.arange(self.ways, device="cpu")[:, None].expand_as(positions)
        parts = [(part[:, :, : self.shots], part[:, :, self.shots :]) for part in (positions, labels)]
        first, second = (torch.cat([half.flatten(1) for half in part], 1) for part in parts)
        return first, second

    def _unequal(self, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """As `_equal`, with different numbers of examples per class."""
        counts = self._counts[rows]
        weights = None
        if (
            self.balance == "random"
        ):  # exponential numbers, divided by their sum, are uniform on the simplex
            weights = torch.empty(rows.shape, dtype=torch.float64, device="cpu").exponential_(generator=rng)
        labels = unequal(counts, self.shots, self.ways * self.queries, weights, rng)
        cut = self.ways * self.shots
        # Sorted by class, support and query set by themselves.
        labels = torch.cat([labels[:, :cut].sort(1).values, labels[:, cut:].sort(1).values], 1)
        drawn = distinct_of(counts, labels, rng)
        return self._order[self._starts[rows].gather(1, labels) + drawn], labels

    def _pictures(self, positions: Tensor, turns: Tensor) -> Tensor:
        """Examples at `positions` `[T, n]`, each rotated by `turns` `[T, n]` times 90 degrees."""
        device = self.images.device
        x = as_floats(self.images[positions.to(device, non_blocking=True)], self._scale)
        if self._scale is not None and self.images.dim() == 3:
            x = x.unsqueeze(2)
        if self.rotations != "none":
            quarters = turns.to(device, non_blocking=True).view(*turns.shape, *[1] * (x.dim() - 2))
            x = torch.where(quarters % 2 == 1, x.rot90(1, (-2, -1)), x)
            x = torch.where(quarters >= 2, x.rot90(2, (-2, -1)), x)
        return x

    def _check(self) -> None:
        if self.ways > len(self._classes):
            note = " A task uses each class under one rotation only." if self.rotations == "classes" else ""
            raise ValueError(
                f"{self.ways}-way tasks need {self.ways} classes, but there are {len(self._classes)};"
                f" lower ways or pass more classes.{note}"
            )
        total = self.shots + self.queries
        if self.balance != "equal":
            smallest = self._counts.sort().values[: self.ways]
            if (have := int(smallest.sum())) < self.ways * total or int(smallest[0]) < 1:
                raise ValueError(
                    f"balance={self.balance!r}: {self.ways} classes need {self.ways * total} examples in"
                    f" total ({self.shots} shots + {self.queries} queries) and at least one each, but the"
                    f" {self.ways} smallest classes have {have}; lower shots or queries, or leave these"
                    " classes out."
                )
            return
        short = (self._counts < total).nonzero().flatten().tolist()
        if short:
            sizes = ", ".join(f"{self._name(row)} has {int(self._counts[row])}" for row in short[:5])
            rest = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
            raise ValueError(
                f"{self.shots} shots + {self.queries} queries need {total} examples per class, but"
                f" {sizes}{rest}; lower shots or queries, or leave these classes out."
            )

    def _name(self, row: int) -> str:
        label = int(self._classes[row])
        name = self.class_names[label] if 0 <= label < len(self.class_names) else None
        return f"class {label}" if name is None else f"class {name!r}"


def _chosen(classes: Iterable[Any], number: Callable[[Any], int]) -> Tensor:
    """Ids of the classes, without duplicates, in the order of `classes`."""
    if isinstance(classes, str):
        raise ValueError(f"classes={classes!r} is a single string; pass a list of classes.")
    ids: dict[int, None] = {}
    for label in classes:
        try:
            ids[number(label)] = None
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"class {label!r} in classes is not among the labels.") from error
    return torch.tensor(list(ids), dtype=torch.long, device="cpu")
