"""How the processes that share the tasks of a meta-batch exchange results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Exchange:
    """A single process, which has all tasks."""

    def gather(self, rows: Tensor) -> Tensor:
        """From one row for each task of this process to those of all tasks, `[T, ...]`, in their order."""
        return rows

    def select(self, values: Tensor) -> Tensor:
        """From one value for each of all tasks to those of this process."""
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        return tensor

    def mean(self, rows: Tensor) -> Tensor:
        """The mean of the rows of all tasks."""
        return rows.mean(0)

    def all(self, condition: bool) -> bool:
        """Whether the condition holds in every process."""
        return condition


LOCAL = Exchange()


class GroupExchange(Exchange):
    """The processes of a group. Process r has the tasks `bounds[r] .. bounds[r + 1] - 1`.

    Args:
        group: the process group; if None, all processes.
        num_tasks: T.
        device: of the tensors that are exchanged.
    """

    def __init__(self, group: ProcessGroup | None, num_tasks: int, device: torch.device) -> None:
        self.group, self.device = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.bounds = [num_tasks * r // self.size for r in range(self.size + 1)]

    @property
    def counts(self) -> list[int]:
        """The number of tasks of each process."""
        return [after - before for before, after in zip(self.bounds, self.bounds[1:])]

    @property
    def tasks(self) -> slice:
        """The positions of this process's tasks."""
        return slice(self.bounds[self.rank], self.bounds[self.rank + 1])

    def gather(self, rows: Tensor) -> Tensor:
        padded = rows.new_zeros(max(self.counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts)])

    def select(self, values: Tensor) -> Tensor:
        return values[self.tasks]

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    def mean(self, rows: Tensor) -> Tensor:
        return self.sum(rows.sum(0)) / self.bounds[-1]

    def all(self, condition: bool) -> bool:
        flag = torch.tensor([int(condition)], device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MIN, group=self.group)
        return bool(flag)

    def gramian(self, rows: Tensor) -> Tensor:
        """The Gramian `[T, T]` of the rows `[T, n]` of all tasks, of which this process has its own.

        Each process receives a part of the columns of all rows, `T n / W` numbers, and the partial
        Gramians are summed.
        """
        counts, width = self.counts, -(-rows.shape[1] // self.size)
        padded = rows.new_zeros(max(counts), width * self.size)
        padded[: len(rows), : rows.shape[1]] = rows
        send = [part.contiguous() for part in padded.split(width, 1)]
        receive = [torch.empty_like(send[0]) for _ in counts]
        dist.all_to_all(receive, send, group=self.group)
        columns = torch.cat([part[:count] for part, count in zip(receive, counts)]).double()
        gramian = columns @ columns.T
        dist.all_reduce(gramian, group=self.group)
        return gramian

    def raise_together(self, error: Exception | None) -> None:
        """Raise an error in every process if one of them has one.

        Raises:
            Exception: `error`, in the process that has it.
            RuntimeError: in the others; the message has that of the first process with an error.
        """
        if self.all(error is None):
            return
        messages: list[Any] = [None] * self.size
        words = None if error is None else f"{type(error).__name__}: {error}"
        dist.all_gather_object(messages, words, group=self.group)
        if error is not None:
            raise error
        rank = next(rank for rank, message in enumerate(messages) if message is not None)
        raise RuntimeError(f"process {rank} failed: {messages[rank]}")
