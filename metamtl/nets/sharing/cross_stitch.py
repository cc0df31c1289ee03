"""Cross-stitch networks: a tower for each task, mixed after every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .named import NamedTasks, Outputs, check_names, distinct


class CrossStitch(NamedTasks):
    """After stage l, the input of task t's next stage is `sum_s stitches[l, t, s] * x_s`.

    Misra, Shrivastava, Gupta, Hebert 2016, https://arxiv.org/abs/1604.03539. With identity matrices the
    towers are apart; with equal rows all tasks see the same. The stitches `[stages, T, T]` are learned,
    from `own` on the diagonal and the rest, to a sum of 1, spread over the other tasks. They want a much
    higher learning rate than the towers, as in the paper; `nets.fine_tune` makes such groups.

    Args:
        make: builds the stages of one tower (an `nn.Sequential` is such), with parameters of their own at
            each call; the last returns `[..., features]`.
        features: width of what the last stage returns.
        outputs: for each task the width of its linear head, or a module that is its head.
        own: what a task keeps of its own tower at the start.

    Raises:
        ValueError: towers without stages, or whose stages do not match in number or shape.

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
                f"{kind}: make() must give the same number of stages, at least one, at each call; found"
                f" {[len(tower) for tower in towers]}."
            )
        self.towers = nn.ModuleDict(dict(zip(outputs, towers)))
        one = torch.eye(tasks) * own + (1 - torch.eye(tasks)) * (1 - own) / max(tasks - 1, 1)
        self.stitches = nn.Parameter(one.repeat(stages, 1, 1) if tasks > 1 else torch.ones(stages, 1, 1))
        self.add_heads(outputs, features)

    def answer(self, wanted: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        towers = [cast(nn.ModuleList, tower) for tower in self.towers.values()]
        states: list[Tensor] = []
        for stage, stitch in enumerate(self.stitches):
            if stage == 0:
                found = [tower[0](*inputs, **keywords) for tower in towers]
            else:
                found = [tower[stage](state) for tower, state in zip(towers, states)]
            if len({state.shape for state in found}) > 1:
                raise ValueError(
                    f"CrossStitch: after stage {stage} the towers have shapes"
                    f" {[list(state.shape) for state in found]}; they must be equal to be mixed."
                )
            states = list(torch.einsum("ts,s...->t...", stitch, torch.stack(found)))
        return {name: self.head(name, state) for name, state in zip(self.towers, states) if name in wanted}
