"""The backward passes of training steps, measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from metamtl import Recipe, backward_passes


class StepCost:
    """`cost(episodes)`: the backward passes of a training step with these episodes.

    Each named task, or the first task of a meta-batch, is measured when it first occurs.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, loss: Any) -> None:
        self.model, self.recipe, self.loss = model, recipe, loss
        self.per_task: dict[str | None, int] = {}

    def __call__(self, episodes: Any) -> int:
        named = isinstance(episodes, Mapping)
        new = {name: e for name, e in episodes.items() if name not in self.per_task} if named else episodes
        if new if named else None not in self.per_task:
            passes = backward_passes(self.model, self.recipe, new, self.loss)
            self.per_task |= passes if isinstance(passes, dict) else {None: passes}
        if named:
            return sum(self.per_task[name] for name in episodes)
        return self.per_task[None] * int(episodes.num_tasks)
