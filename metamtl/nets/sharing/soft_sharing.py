"""Soft parameter sharing: a tower for each task, coupled with a penalty."""

from __future__ import annotations

from typing import Any

from torch import nn

from .named import Make, NamedTasks, Outputs, check_names, distinct


class SoftSharing(NamedTasks):
    """A tower `towers.<task>` and a head for each task; all towers have the same structure.

    The towers share no parameters. A penalty on the distance between them in the objective couples them
    (`metamtl.objectives.penalties`: `l2_to_mean`, `nuclear_norm`, `low_rank`):

        recipes.joint(objective=penalized(nuclear_norm("towers"), 0.01))

    Args:
        make: builds one tower, `x -> [..., features]`, with new parameters at each call.
        features: output width of a tower.
        outputs: for each task the width of its linear head, or a module to use as its head.

    >>> import torch
    >>> model = SoftSharing(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh()), 8, {"a": 3, "b": 1})
    >>> model(torch.zeros(5, 4), task="a").shape
    torch.Size([5, 3])
    """

    def __init__(self, make: Make, features: int, outputs: Outputs) -> None:
        super().__init__()
        check_names(type(self).__name__, outputs)
        towers = distinct([make() for _ in outputs], "the towers of make()")
        self.towers = nn.ModuleDict(dict(zip(outputs, towers)))
        self.add_heads(outputs, features)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        return {name: self.head(name, self.towers[name](*inputs, **keywords)) for name in task_names}
