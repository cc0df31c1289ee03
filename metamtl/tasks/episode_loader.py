"""Draw episodes ahead of the training, in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


class EpisodeLoader:
    """The episodes of a sequence of steps, drawn ahead by worker processes.

    `draw(step)` must depend only on the step, not on global state. Then the episodes and their order do
    not depend on the number of workers, and a training that resumes at step s passes `range(s, steps)`.

    Args:
        draw: returns the episode (or the dict of episodes) of a step, on the CPU if `workers` > 0. Where
            processes are spawned (macOS, Windows), it must be picklable.
        steps: the steps.
        workers: number of worker processes; 0 draws in this process.
        prefetch: episodes that each worker draws ahead.
        device: device to which episodes are moved.

    Raises:
        ValueError: `workers` is negative, or `prefetch` is less than 1.

    An error in a worker is raised with its own type by the iteration.

    >>> from metamtl.tasks import Sinusoid
    >>> waves = Sinusoid(shots=5).split("train")
    >>> draw = lambda step: waves.sample(4, torch.Generator().manual_seed(step))
    >>> [episode.support.x.shape[0] for episode in EpisodeLoader(draw, range(3))]
    [4, 4, 4]
    """

    def __init__(
        self,
        draw: Callable[[int], Any],
        steps: Iterable[int],
        *,
        workers: int = 0,
        prefetch: int = 2,
        device: torch.device | str | None = None,
    ) -> None:
        if workers < 0 or prefetch < 1:
            raise ValueError(
                f"workers={workers}, prefetch={prefetch}: workers must be at least 0, prefetch at least 1."
            )
        self.draw, self.steps, self.device = draw, steps, device
        self.workers, self.prefetch = workers, prefetch

    def __iter__(self) -> Iterator[Any]:
        loader: DataLoader[Any] = DataLoader(
            _Steps(self.draw),  # type: ignore[arg-type]
            batch_size=None,
            sampler=self.steps,
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # otherwise it advances the global generator
        )
        for episode in loader:
            yield episode if self.device is None else _moved(episode, self.device)


class _Steps:
    """A data set whose item `step` is `draw(step)`."""

    def __init__(self, draw: Callable[[int], Any]) -> None:
        self.draw = draw

    def __getitem__(self, step: int) -> Any:
        return self.draw(step)


def _unchanged(episode: Any) -> Any:
    return episode


def _moved(episode: Any, device: torch.device | str) -> Any:
    if not isinstance(episode, dict):
        return episode.to(device)
    copies: dict[int, Tensor] = {}  # named tasks that share their input still share it afterwards

    def moved(leaf: Tensor) -> Tensor:
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.to(device)
        return copies[id(leaf)]

    return {name: part.map(moved) for name, part in episode.items()}
