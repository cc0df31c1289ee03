"""Distillation: single-task teachers, one multi-task student."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..episode import Batch, Episode
from ..functional import forward
from .labeled import Loss


def teach(episodes: Mapping[str, Episode], teachers: Mapping[str, nn.Module]) -> dict[str, Episode]:
    """The episodes with each target `y` replaced by `(y, teacher's output)`, for `distilled` losses.

    The teachers are only asked, without a graph; `y` stays as it is where a task has no teacher. Measure
    on episodes without it.

    Args:
        episodes: named tasks.
        teachers: for some or all of them a trained model, in eval mode; one with heads by name is asked
            for the task's.

    Raises:
        ValueError: a teacher of no task, or in training mode.

    >>> from metamtl import Batch, Episode, nets
    >>> x, y = torch.zeros(5, 4), torch.zeros(5, dtype=torch.long)
    >>> taught = teach({"kind": Episode(None, Batch(x, y))}, {"kind": nets.mlp(4, 8, 3).eval()})
    >>> loss = {"kind": distilled(F.cross_entropy, soft_labels(temperature=2.0))}
    >>> loss["kind"](torch.zeros(5, 3), taught["kind"].query.y).shape
    torch.Size([])
    """
    unknown = sorted(set(teachers) - set(episodes))
    if unknown:
        raise ValueError(f"teachers for {unknown}, but the tasks are {', '.join(map(repr, episodes))}.")
    for name, teacher in teachers.items():
        if any(module.training for module in teacher.modules()):
            raise ValueError(
                f"the teacher of task {name!r} is in training mode, so its answers would depend on dropout"
                " or on the batch; call .eval() on it."
            )
    return {
        name: _taught(episode, teachers[name], name) if name in teachers else episode
        for name, episode in episodes.items()
    }


def _taught(episode: Episode, teacher: nn.Module, name: str) -> Episode:
    takes_task = "task" in inspect.signature(teacher.forward).parameters

    def asked(batch: Batch) -> Batch:
        with torch.no_grad():
            return Batch(batch[0], (batch[1], forward(teacher, {}, batch[0], name if takes_task else None)))

    support = None if episode.support is None else asked(episode.support)
    return replace(episode, support=support, query=asked(episode.query))


class Taught:
    """A source of named tasks that have teachers: their answers in `sample`, distilled losses in `loss`.

    All else is the source's. For training; measure on the source itself. With teachers trained for one
    task each this is how Clark et al. 2019 (https://arxiv.org/abs/1907.04829) train a student of many,
    here with a constant `weight`.

    Args:
        tasks: with `sample(n, generator) -> {task: Episode}` and `loss`, a dict.
        teachers: as for `teach`.
        match, weight, where: as for `distilled`.
    """

    def __init__(
        self,
        tasks: Any,
        teachers: Mapping[str, nn.Module],
        match: Loss,
        weight: float = 0.5,
        where: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.tasks, self.teachers = tasks, teachers
        own = {task: distilled(tasks.loss[task], match, weight, where) for task in teachers}
        self.loss: dict[str, Loss] = {**tasks.loss, **own}

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Episode]:
        """The episodes of the source, with what the teachers say of them."""
        episodes = self.tasks.sample(n, generator)
        return teach(episodes, {task: model for task, model in self.teachers.items() if task in episodes})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("tasks"), name)  # a copy in the making has none yet


def distilled(
    loss: Loss, match: Loss, weight: float = 0.5, where: Callable[[Any], Tensor] | None = None
) -> Loss:
    """`(1 - weight) * loss(output, y) + weight * match(output, teacher's output)`.

    Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531. With `weight=1` labels are looked at by
    `where` alone.

    Args:
        loss: the task's own loss.
        match: `soft_labels(temperature)` for classes, `F.mse_loss` for numbers.
        weight: from 0 to 1.
        where: from `y` what `match` compares, as a mask over the outputs' first axes; of tags,
            `metamtl.losses.present` is the real tokens. If None, everything: a teacher also knows what has
            no label.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} must be from 0 (labels alone) to 1 (teacher alone).")

    def both(output: Any, y: tuple[Any, Any]) -> Tensor:
        if not isinstance(y, tuple) or len(y) != 2:
            raise ValueError(
                f"a distilled loss takes y as (y, teacher's output), found a {type(y).__name__}; make the"
                " episodes by teach(episodes, teachers)."
            )
        there = slice(None) if where is None else where(y[0])
        taught = match(output[there], y[1].detach()[there])
        return taught if weight == 1 else (1 - weight) * loss(output, y[0]) + weight * taught

    return both


def soft_labels(temperature: float = 2.0) -> Loss:
    """`T^2 KL(softmax(teacher / T) | softmax(output / T))`, the mean over all but the last axis.

    Scores `[..., N]` of both. The factor keeps the gradient's size as T grows: for large T it is that of
    the squared difference of centred scores over 2 N.

    >>> soft_labels()(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]))
    tensor(0.)
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0.")

    def match(output: Tensor, teacher: Tensor) -> Tensor:
        if output.shape != teacher.shape:
            raise ValueError(
                f"the student answers {list(output.shape)}, the teacher {list(teacher.shape)}; both need"
                " the same classes in the same order."
            )
        ours, theirs = ((scores / temperature).log_softmax(-1) for scores in (output, teacher))
        return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean()

    return match
