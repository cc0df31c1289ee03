"""Cross-stitch networks: a tower for each task, with linear mixing after every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .named import NamedTasks, Outputs, check_names, distinct


class CrossStitch(NamedTasks):
    """After stage l, the input of task t's next stage is `sum_s stitches[l, t, s] * x_s`.

    Misra, Shrivastava, Gupta, Hebert 2016, https://arxiv.org/abs/1604.03539. With identity matrices the
    towers are independent; with equal rows all tasks have the same features. The stitches `[stages, T, T]`
    are learned. Initially they are `own` on the diagonal, and each row sums to 1 with equal other entries.
    As in the paper, they need a much higher learning rate than the towers; `nets.fine_tune` makes such
    parameter groups.

    Args:
        make: builds the stages of one tower (for example as an `nn.Sequential`), with new parameters at
            each call; the last stage returns `[..., features]`.
        features: output width of the last stage.
        outputs: for each task the width of its linear head, or a module to use as its head.
        own: initial weight of a task's own tower.

    Raises:
        ValueError: towers have no stages, or their stages differ in number or shape.

    >>> def tower():
    ...     return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 6))
    >>> model = CrossStitch(tower, 6, {"a": 3, "b": 1})
    >>> model.stitches.shape, model(torch.zeros(5, 4), task="a").shape
    (torch.Size([2, 2, 2]), torch.Size([5, 3]))
    """

    def __init__(
        self, make: Callable[[], Sequence[nn.Module]], features: int, outputs: Outputs, own: float = 0.9
    ) -> None:
        super().__init__()
        kind, tasks = type(self).__name__, len(outputs)
        check_names(kind, outputs)
        towers = [nn.ModuleList(list(make())) for _ in outputs]
        distinct(towers, "the towers of make()")
        stages = len(towers[0])
        if not stages or any(len(tower) != stages for tower in towers):
            raise ValueError(
                f"{kind}: make() must return the same number of stages, at least one, at each call; found"
                f" {[len(tower) for tower in towers]}."
            )
        self.towers = nn.ModuleDict(dict(zip(outputs, towers)))
        one = torch.eye(tasks) * own + (1 - torch.eye(tasks)) * (1 - own) / max(tasks - 1, 1)
        self.stitches = nn.Parameter(one.repeat(stages, 1, 1) if tasks > 1 else torch.ones(stages, 1, 1))
        self.add_heads(outputs, features)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        towers = [cast(nn.ModuleList, tower) for tower in self.towers.values()]
        states: list[Tensor] = []
        for stage, stitch in enumerate(self.stitches):
            if stage == 0:
                outputs = [tower[0](*inputs, **keywords) for tower in towers]
            else:
                outputs = [tower[stage](state) for tower, state in zip(towers, states)]
            if len({output.shape for output in outputs}) > 1:
                raise ValueError(
                    f"CrossStitch: after stage {stage} the towers have shapes"
                    f" {[list(output.shape) for output in outputs]}; the shapes must be equal."
                )
            states = list(torch.einsum("ts,s...->t...", stitch, torch.stack(outputs)))
        return {
            name: self.head(name, state) for name, state in zip(self.towers, states) if name in task_names
        }
