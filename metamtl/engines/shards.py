"""What a process of a group has of the matrix of gradients `[T, n]`: rows, summands of rows, or columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..functional.gramian import gramian
from .exchange import GroupExchange

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class TaskShards(GroupExchange):
    """Process r has the rows of the tasks `bounds[r] .. bounds[r + 1] - 1`."""

    def __init__(self, group: ProcessGroup | None, device: torch.device, num_tasks: int) -> None:
        super().__init__(group, device)
        self.bounds = [num_tasks * r // self.size for r in range(self.size + 1)]
        self.counts = [after - before for before, after in zip(self.bounds, self.bounds[1:])]

    @property
    def tasks(self) -> slice:
        """The positions of this process's tasks."""
        return slice(self.bounds[self.rank], self.bounds[self.rank + 1])

    def full(self, rows: Tensor) -> Tensor:
        return self.gather(rows, self.counts)

    def gramian(self, rows: Tensor) -> Tensor:
        parts = self.columns(rows, max(self.counts))
        return self.sum(gramian(torch.cat([part[:count] for part, count in zip(parts, self.counts)])))

    def select(self, values: Tensor) -> Tensor:
        return values[self.tasks]

    def own_losses(self, losses: Tensor) -> Tensor:
        return losses[self.tasks]

    def spread(self, mask: Tensor) -> Tensor:
        everywhere = mask.new_zeros(self.bounds[-1])
        everywhere[self.tasks] = mask
        return everywhere


class Weighed(NamedTuple):
    """The losses of named tasks over the examples of all processes.

    Attributes:
        losses: the means over all labels, `[T]`.
        shares: the part of the labels that this process has, `[T]`; its gradients are multiplied by them.
        used: whether a task uses a parameter, `[T, P]`.
    """

    losses: Tensor
    shares: Tensor
    used: list[list[bool]]


class ExampleShards(GroupExchange):
    """Every process has a summand of every row: the gradient on its part of the examples."""

    local_losses: Tensor

    def full(self, rows: Tensor) -> Tensor:
        return self.sum(rows)

    def gramian(self, rows: Tensor) -> Tensor:
        return self.sum(gramian(reduce(torch.add, self.columns(rows, len(rows)))))

    def own_losses(self, losses: Tensor) -> Tensor:
        return self.local_losses

    def weigh(
        self,
        tasks: Sequence[str],
        losses: Tensor,
        counts: Sequence[float],
        used: Sequence[Sequence[bool]],
    ) -> Weighed:
        """Combine the losses of the processes into means over all labels.

        Args:
            tasks: their names.
            losses: of this process, `[T]`; 0 for a task without labels.
            counts: its number of labels of each task.
            used: whether a task uses a parameter in this process, by task and parameter.

        Raises:
            ValueError: no process has a label of a task.
        """
        self.local_losses = losses
        rows = [[n, *row] for n, row in zip(counts, used)]
        own = torch.tensor(rows, dtype=torch.float64, device=self.device)
        total = self.sum(torch.cat([losses[:, None].double() * own[:, :1], own], 1))
        if unlabeled := [task for task, count in zip(tasks, total[:, 1].tolist()) if not count > 0]:
            raise ValueError(
                f"no process has a label of the tasks {unlabeled}. Nothing was added to .grad. Exclude"
                " these tasks from the step."
            )
        return Weighed(
            losses=(total[:, 0] / total[:, 1]).to(losses),
            shares=(own[:, 0] / total[:, 1]).to(losses),
            used=(total[:, 2:] > 0).tolist(),
        )

    def of_features(self) -> FeatureShards:
        """The layout of gradients at features, of which this process has those of its examples."""
        result = FeatureShards(self.group, self.device)
        result.local_losses = self.local_losses
        return result


class FeatureShards(ExampleShards):
    """Every process has a part of the columns: the gradients at the features of its examples."""

    by_columns = True
    counts: list[int]

    def full(self, rows: Tensor) -> Tensor:
        sizes = torch.zeros(self.size, dtype=torch.long, device=self.device)
        sizes[self.rank] = rows.shape[1]
        self.counts = self.sum(sizes).tolist()
        return self.gather(rows.T, self.counts).T

    def gramian(self, rows: Tensor) -> Tensor:
        return self.sum(gramian(rows))

    def part(self, direction: Tensor) -> Tensor:
        return direction.split(self.counts)[self.rank]
