"""Sequential tasks: a task's head reads the outputs of the tasks before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
from torch import Tensor, nn

from .named import NamedTasks, Outputs, check_names, width_of


class Cascade(NamedTasks):
    """`output_t = head_t([body(x), output_s for s in after[t]])`: some tasks go before others.

    As in a joint many-task model (Hashimoto et al. 2017, https://arxiv.org/abs/1611.01587). Outputs are
    read as they are (logits, not probabilities), and a task's loss reaches the heads before its own.

    Args:
        body: `x -> [..., features]`, any module.
        features: width of what the body returns.
        outputs: for each task the width of its linear head, or a module that is its head (it takes the
            features and what the task reads, side by side).
        after: for each task those whose outputs it reads; tasks that are not named read none.

    Raises:
        ValueError: a task that reads one without a head, or itself by a circle.

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
            raise ValueError(f"{kind}: after[{single[0]!r}] is one name; give a list of names.")
        unknown = sorted({*after, *(name for read in after.values() for name in read)} - set(outputs))
        if unknown:
            raise ValueError(f"{kind}: after= names {unknown}, but there are heads for {list(outputs)}.")
        self.after = {name: tuple(dict.fromkeys(after.get(name, ()))) for name in outputs}
        try:
            self.order = tuple(TopologicalSorter(self.after).static_order())
        except CycleError as circle:
            raise ValueError(
                f"{kind}: the order of the tasks goes in a circle, {' -> '.join(circle.args[1])};"
                " a task can only read tasks before it."
            ) from None
        self.body = body
        read = {name: sum(width_of(kind, outputs, s) for s in self.after[name]) for name in outputs}
        self.add_heads(outputs, {name: features + width for name, width in read.items()})

    def answer(self, wanted: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        features = self.body(*inputs, **keywords)
        needed = set(wanted)
        for name in reversed(self.order):
            needed |= set(self.after[name]) if name in needed else set()
        found: dict[str, Tensor] = {}
        for name in self.order:
            if name in needed:
                read = [found[earlier] for earlier in self.after[name]]
                found[name] = self.head(name, torch.cat([features, *read], -1) if read else features)
        return {name: found[name] for name in wanted}
