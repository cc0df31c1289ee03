"""Distillation from single-task teachers to one multi-task student."""

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


def add_teacher_targets(
    episodes: Mapping[str, Episode], teachers: Mapping[str, nn.Module]
) -> dict[str, Episode]:
    """Replace each target `y` of the episodes with `(y, teacher's output)`, for `distillation_loss`.

    No graph is recorded for the teachers. The targets of a task without a teacher are unchanged. Use the
    original episodes for evaluation.

    Args:
        episodes: named tasks.
        teachers: a trained model in eval mode for some or all of the tasks, by name. If a model has named
            heads, the head of the task is used.

    Raises:
        ValueError: a teacher belongs to no task, or is in training mode.

    >>> from metamtl import Batch, Episode, nets
    >>> x, y = torch.zeros(5, 4), torch.zeros(5, dtype=torch.long)
    >>> episodes, teachers = {"kind": Episode(None, Batch(x, y))}, {"kind": nets.mlp(4, 8, 3).eval()}
    >>> new_episodes = add_teacher_targets(episodes, teachers)
    >>> loss = {"kind": distillation_loss(F.cross_entropy, soft_labels(temperature=2.0))}
    >>> loss["kind"](torch.zeros(5, 3), new_episodes["kind"].query.y).shape
    torch.Size([])
    """
    unknown = sorted(set(teachers) - set(episodes))
    if unknown:
        raise ValueError(f"teachers for {unknown}, but the tasks are {', '.join(map(repr, episodes))}.")
    for name, teacher in teachers.items():
        if any(module.training for module in teacher.modules()):
            raise ValueError(
                f"the teacher of task {name!r} is in training mode, so its output would depend on dropout"
                " or on the batch; call .eval() on it."
            )
    return {
        name: _add_targets(episode, teachers[name], name) if name in teachers else episode
        for name, episode in episodes.items()
    }


def _add_targets(episode: Episode, teacher: nn.Module, name: str) -> Episode:
    takes_task = "task" in inspect.signature(teacher.forward).parameters

    def with_output(batch: Batch) -> Batch:
        with torch.no_grad():
            return Batch(batch[0], (batch[1], forward(teacher, {}, batch[0], name if takes_task else None)))

    support = None if episode.support is None else with_output(episode.support)
    return replace(episode, support=support, query=with_output(episode.query))


class WithTeachers:
    """A source of named tasks with distillation: `sample` adds teacher outputs, `loss` has the losses.

    All other attributes are those of the source. Use it for training, and the source itself for evaluation.
    With single-task teachers this trains the multi-task student of Clark et al. 2019
    (https://arxiv.org/abs/1907.04829), with a constant `weight`.

    Args:
        tasks: the source, with `sample(n, generator) -> {task: Episode}` and `loss`, a dict.
        teachers: as in `add_teacher_targets`.
        divergence, weight, mask: as in `distillation_loss`.
    """

    def __init__(
        self,
        tasks: Any,
        teachers: Mapping[str, nn.Module],
        divergence: Loss,
        weight: float = 0.5,
        mask: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.tasks, self.teachers = tasks, teachers
        losses = {task: distillation_loss(tasks.loss[task], divergence, weight, mask) for task in teachers}
        self.loss: dict[str, Loss] = {**tasks.loss, **losses}

    def sample(self, n: int, generator: torch.Generator, **options: Any) -> dict[str, Episode]:
        """Sample episodes of the source and add teacher outputs; `options` are passed to the source."""
        episodes = self.tasks.sample(n, generator, **options)
        return add_teacher_targets(
            episodes, {task: model for task, model in self.teachers.items() if task in episodes}
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("tasks"), name)  # "tasks" is missing during copy


def distillation_loss(
    loss: Loss, divergence: Loss, weight: float = 0.5, mask: Callable[[Any], Tensor] | None = None
) -> Loss:
    """`(1 - weight) * loss(output, y) + weight * divergence(output, teacher's output)`.

    Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531. With `weight=1`, only `mask` uses labels.

    Args:
        loss: the task's own loss.
        divergence: `soft_labels(temperature)` for classification, `F.mse_loss` for regression.
        weight: from 0 to 1.
        mask: a function that computes from `y` a mask over the first axes of the outputs that `divergence`
            compares; for tags, `metamtl.losses.is_labeled` selects the real tokens. If None, all outputs
            are compared, because a teacher also has an output for examples without a label.

    Raises:
        ValueError: `weight` is out of range, or, on a call, `y` is not a pair.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} must be from 0 (only labels) to 1 (only the teacher).")

    def total(output: Any, y: tuple[Any, Any]) -> Tensor:
        if not isinstance(y, tuple) or len(y) != 2:
            raise ValueError(
                f"a distillation loss takes y as (y, teacher's output), found a {type(y).__name__}; make"
                " the episodes with add_teacher_targets(episodes, teachers)."
            )
        index = slice(None) if mask is None else mask(y[0])
        distance = divergence(output[index], y[1].detach()[index])
        return distance if weight == 1 else (1 - weight) * loss(output, y[0]) + weight * distance

    return total


def soft_labels(temperature: float = 2.0) -> Loss:
    """`T^2 KL(softmax(teacher / T) | softmax(output / T))`, the mean over all axes but the last.

    Both outputs are scores `[..., N]`. The factor `T^2` keeps the scale of the gradient as T grows: for
    large T the loss tends to the squared difference of the centered scores divided by 2 N.

    >>> soft_labels()(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]))
    tensor(0.)
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive.")

    def divergence(output: Tensor, teacher: Tensor) -> Tensor:
        if output.shape != teacher.shape:
            raise ValueError(
                f"the student's output is {list(output.shape)}, the teacher's {list(teacher.shape)}; both"
                " need the same classes in the same order."
            )
        student, target = ((scores / temperature).log_softmax(-1) for scores in (output, teacher))
        return temperature**2 * F.kl_div(student, target, reduction="none", log_target=True).sum(-1).mean()

    return divergence
