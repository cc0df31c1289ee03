"""How the processes of a group exchange results."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_map

from ..functional.gramian import gramian
from .agreement import Agreement, concatenated, difference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Exchange:
    """A single process, which has the whole matrix of gradients `[T, n]`."""

    by_columns = False  # whether a process has a part of the columns

    @contextmanager
    def together(self) -> Iterator[Agreement]:
        """Context manager: an error in one process is raised in all. Its value is filled by the caller."""
        yield {}

    def full(self, rows: Tensor) -> Tensor:
        """The matrix `[T, n]`, from the part that this process has."""
        return rows

    def gramian(self, rows: Tensor) -> Tensor:
        """`J J^T` `[T, T]` in double precision, where J is `full(rows)`."""
        return gramian(rows)

    def select(self, values: Tensor) -> Tensor:
        """From one value for each of all tasks to those of the rows that this process has."""
        return values

    def part(self, direction: Tensor) -> Tensor:
        """From a direction `[n]` to the columns that this process has."""
        return direction

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        return tensor

    def sum_each(self, tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """The sums over processes, in one operation; None if no process has the tensor.

        `like` has tensors of the same shapes and dtypes.
        """
        return list(tensors)

    def all(self, *conditions: bool) -> list[bool]:
        """Whether each of the conditions holds in every process."""
        return list(conditions)

    def own_losses(self, losses: Tensor) -> Tensor:
        """The losses of the rows that this process has."""
        return losses

    def blame(self, mask: Tensor) -> tuple[Tensor, list[int]]:
        """From a mask of own rows to one of all tasks `[T]`, and the processes that have such a row."""
        return mask, []

    def join(self, trees: Mapping[str, Any]) -> Mapping[str, Any]:
        """Concatenate the trees of all processes along the first axis, by task; None is an empty tree."""
        return trees


LOCAL = Exchange()


class GroupExchange(Exchange):
    """The processes of a group.

    Args:
        group: the process group; if None, all processes.
        device: of the tensors that are exchanged.
    """

    def __init__(self, group: ProcessGroup | None, device: torch.device) -> None:
        self.group, self.device = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        self._run(dist.all_reduce, total)
        return total

    def sum_each(self, tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        if not like:
            return []
        zeros = [torch.zeros_like(other) if g is None else g for g, other in zip(tensors, like)]
        present = zeros[0].new_tensor([float(tensor is not None) for tensor in tensors])
        flat = torch.cat([*(tensor.flatten() for tensor in zeros), present])
        self._run(dist.all_reduce, flat)
        *sums, present = flat.split([*(tensor.numel() for tensor in zeros), len(zeros)])
        return [
            total.view(zero.shape) if some else None
            for total, zero, some in zip(sums, zeros, present.tolist())
        ]

    def all(self, *conditions: bool) -> list[bool]:
        flags = self._least(torch.tensor([*map(int, conditions)], device=self.device))
        return [bool(flag) for flag in flags.tolist()]

    def blame(self, mask: Tensor) -> tuple[Tensor, list[int]]:
        masks = self.gather_objects(self.spread(mask).tolist())
        ranks = [rank for rank, of_process in enumerate(masks) if any(of_process)]
        return torch.tensor(masks, device=mask.device).any(0), ranks

    def spread(self, mask: Tensor) -> Tensor:
        """From a mask of the rows that this process has to one of all tasks `[T]`, False for the others."""
        return mask

    @contextmanager
    def together(self) -> Iterator[Agreement]:
        """Context manager: an error in one process is raised in all.

        Raises:
            Exception: the error of this process.
            RuntimeError: another process has an error; the message has that of the first one.
            ValueError: the value of the context manager, which the caller fills, differs between processes.
        """
        agreement: Agreement = {}
        error = None
        try:
            yield agreement
        except Exception as exception:  # raised below, in all processes
            error = exception
        digest = zlib.crc32(repr(agreement).encode()) if error is None else 0
        flags = torch.tensor([int(error is None), digest, -digest], device=self.device)
        ok, lowest, highest = self._least(flags).tolist()
        if not ok:
            words = self.gather_objects(None if error is None else f"{type(error).__name__}: {error}")
            if error is not None:
                raise error
            rank = next(rank for rank, message in enumerate(words) if message is not None)
            raise RuntimeError(f"process {rank} failed: {words[rank]}")
        if lowest != -highest:
            raise ValueError(difference(self.gather_objects(agreement)))

    def gather_objects(self, value: Any) -> list[Any]:
        """The objects of all processes."""
        values: list[Any] = [None] * self.size
        self._run(dist.all_gather_object, values, value)
        return values

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Concatenate the rows of all processes; process r has `counts[r]`."""
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        self._run(dist.all_gather, parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    def columns(self, rows: Tensor, height: int) -> list[Tensor]:
        """This process's part of the columns of the rows of every process, `[height, n / W]` each."""
        width = -(-rows.shape[1] // self.size)
        missing = (0, width * self.size - rows.shape[1], 0, height - len(rows))
        padded = nn.functional.pad(rows, missing) if any(missing) else rows
        send = [part.contiguous() for part in padded.split(width, 1)]
        receive = [torch.empty_like(part) for part in send]
        self._run(dist.all_to_all, receive, send)
        return receive

    def join(self, trees: Mapping[str, Any]) -> Mapping[str, Any]:
        def to(device: torch.device | str) -> Callable[[Any], Any]:
            return lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf

        every = self.gather_objects(tree_map(to("cpu"), dict(trees)))
        joined = {}
        for task in trees:
            parts = [part[task] for part in every if part[task] is not None]
            if not parts:
                raise ValueError(f"no process has an example of task {task!r}; exclude the task.")
            joined[task] = tree_map(lambda *leaves: concatenated(task, leaves), *parts)  # noqa: B023
        return tree_map(to(self.device), joined)  # type: ignore[no-any-return]

    def _least(self, flags: Tensor) -> Tensor:
        self._run(dist.all_reduce, flags, dist.ReduceOp.MIN)
        return flags

    def _run(self, collective: Callable[..., Any], *args: Any) -> None:
        try:
            collective(*args, group=self.group)
        except RuntimeError as error:
            raise RuntimeError(
                f"{collective.__name__} of {self.size} processes failed in process {self.rank}, because"
                f" another process has ended or does not answer ({str(error).splitlines()[0]}). Look for"
                " its error; torchrun --max-restarts=1 starts all processes again."
            ) from error
