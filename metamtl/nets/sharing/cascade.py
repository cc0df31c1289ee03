"""Sequential tasks: the head of a task takes the outputs of earlier tasks as inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
from torch import Tensor, nn

from .named import NamedTasks, Outputs, check_names, width_of


class Cascade(NamedTasks):
    """`output_t = head_t([body(x), output_s for s in after[t]])`: heads that depend on earlier tasks.

    As in a joint many-task model (Hashimoto et al. 2017, https://arxiv.org/abs/1611.01587). Heads receive
    outputs unchanged (logits, not probabilities), and the loss of a task also trains the earlier heads.

    Args:
        body: `x -> [..., features]`, any module.
        features: output width of the body.
        outputs: for each task the width of its linear head, or a module to use as its head (its input is
            the concatenation of the features and the outputs that the task reads).
        after: for each task the tasks whose outputs it reads; other tasks read none.

    Raises:
        ValueError: a task reads the output of a task without a head, or the order has a cycle.

    >>> model = Cascade(nn.Linear(4, 8), 8, {"click": 1, "buy": 1}, after={"buy": ["click"]})
    >>> model.heads["buy"].in_features, model(torch.zeros(5, 4), task="buy").shape
    (9, torch.Size([5, 1]))
    """

    def __init__(
        self, body: nn.Module, features: int, outputs: Outputs, after: Mapping[str, Sequence[str]]
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        check_names(kind, outputs)
        single = sorted(name for name, read in after.items() if isinstance(read, str))
        if single:
            raise ValueError(f"{kind}: after[{single[0]!r}] is one name; pass a list of names.")
        unknown = sorted({*after, *(name for read in after.values() for name in read)} - set(outputs))
        if unknown:
            raise ValueError(f"{kind}: after= names {unknown}, but there are heads for {list(outputs)}.")
        self.after = {name: tuple(dict.fromkeys(after.get(name, ()))) for name in outputs}
        try:
            self.order = tuple(TopologicalSorter(self.after).static_order())
        except CycleError as error:
            raise ValueError(
                f"{kind}: the order of the tasks has a cycle, {' -> '.join(error.args[1])};"
                " a task can only read earlier tasks."
            ) from None
        self.body = body
        read = {name: sum(width_of(kind, outputs, s) for s in self.after[name]) for name in outputs}
        self.add_heads(outputs, {name: features + width for name, width in read.items()})

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        features = self.body(*inputs, **keywords)
        tasks = set(task_names)
        for name in reversed(self.order):
            tasks |= set(self.after[name]) if name in tasks else set()
        outputs: dict[str, Tensor] = {}
        for name in self.order:
            if name in tasks:
                read = [outputs[earlier] for earlier in self.after[name]]
                outputs[name] = self.head(name, torch.cat([features, *read], -1) if read else features)
        return {name: outputs[name] for name in task_names}
