"""Multi-task learning on few-shot classes: one trained head row for every class."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import index
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params, canonical_names, select_parameters
from ..losses import Loss
from .base import Adapter, initial_params


class HeadTable(Adapter):
    """A table with one head row for each training class. The head of a task consists of its classes' rows.

    `W_t = table[task ids]`. The ids of a few-shot task are those of its N classes, so its head has N rows;
    the head of a task with one id (a regression) is one row. There are no inner steps: this is multi-task
    learning with a shared body and task-specific heads. Wang, Zhao, Li 2021,
    https://arxiv.org/abs/2106.09017.

    The table is a parameter of the adapter; pass `[*model.parameters(), *recipe.parameters()]` to the
    optimizer.

    Args:
        ids: the ids that tasks may have, as listed by `family.ids`.
        features: F, the width of the body's output.
        head: name of the model's linear head, whose weight and bias are replaced.

    Raises:
        ValueError: there is no id, or an id is negative or listed twice. When tasks are checked: an id is
            not in the table.
        TypeError: an id is not an integer.

    >>> table = HeadTable(ids=[3, 7, 9], features=4)
    >>> model = nn.Sequential()
    >>> model.head = nn.Linear(4, 2)
    >>> table(model, None, nn.functional.cross_entropy, task=torch.tensor([9, 3]))["head.weight"].shape
    torch.Size([2, 4])
    """

    def __init__(self, ids: Iterable[int], features: int, head: str = "head") -> None:
        super().__init__()
        id_tensor = _integers(ids)
        if id_tensor.numel() == 0 or bool((id_tensor < 0).any()):
            raise ValueError("HeadTable needs at least one id, none of them negative; pass `family.ids`.")
        values, counts = id_tensor.unique(return_counts=True)
        if bool((counts > 1).any()):
            raise ValueError(
                f"ids {values[counts > 1].tolist()[:10]} are listed more than once, but each id has one"
                " head row; list every id once, as `family.ids` does."
            )
        bound = 1 / math.sqrt(features)  # as in torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(len(id_tensor), features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(id_tensor)).uniform_(-bound, bound))
        rows = torch.full((int(id_tensor.max()) + 1,), -1)
        rows[id_tensor] = torch.arange(len(id_tensor))
        self.register_buffer("rows", rows)
        self.rows: Tensor
        self.head = head

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        select_parameters(model, self.head, "head")
        if isinstance(task, Tensor) and not _is_integer(task):
            raise ValueError(
                f"Episode.task holds {task.dtype}, but ids are integers; convert them with task.long()."
            )
        if not isinstance(task, Tensor):
            raise ValueError(
                "HeadTable looks a task's head up by its ids, but this episode has no ids"
                f" (task={task!r}); use a family with a fixed set of tasks, or another adapter."
            )
        known = (task >= 0) & (task < len(self.rows))
        known &= self.rows[task.where(known, 0)] >= 0
        if not bool(known.all()):
            unknown = task[~known].unique().tolist()
            raise ValueError(
                f"unknown task ids {unknown[:10]}: the table holds {len(self.weight)} ids"
                f" up to {len(self.rows) - 1}, and none of these; for tasks that were not in training, use"
                " an adapter that computes a head, such as Prototype or Gradient."
            )

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        params = initial_params(model, params)
        # index_select, because vmap does not support indexing with a zero-dimensional tensor
        rows = self.rows.index_select(0, task.reshape(-1))
        names = canonical_names(model)
        params[names[f"{self.head}.weight"]] = self.weight.index_select(0, rows)
        if f"{self.head}.bias" in names:
            params[names[f"{self.head}.bias"]] = self.bias.index_select(0, rows)
        return params


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _integers(ids: Iterable[int]) -> Tensor:
    """The ids as `int64`; numbers that are not integers are rejected, not rounded."""
    values = ids if isinstance(ids, Tensor) else list(ids)
    if not isinstance(values, Tensor):
        invalid = [i for i in values if isinstance(i, bool) or not isinstance(i, SupportsIndex)]
        if invalid:
            raise TypeError(
                f"id {invalid[0]!r} is a {type(invalid[0]).__name__}; HeadTable needs integers."
            )
        return torch.tensor([index(i) for i in values], dtype=torch.long, device="cpu")
    if not _is_integer(values):
        raise TypeError(f"ids are {values.dtype}; HeadTable needs integers.")
    return values.detach().flatten().long().cpu()
