"""Several processes that `torchrun` started, for one training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist

from metamtl.engines import own_examples


@contextmanager
def process_group() -> Iterator[None]:
    """Within this context the process group of `torchrun` is initialized, if it started this program."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # After a restart, the store of torchrun still has the addresses of the processes before it.
    store, rank, size = next(iter(dist.rendezvous("env://")))
    store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield
        dist.barrier()  # a process that leaves closes connections that others may still use
    finally:
        dist.destroy_process_group()


def num_processes() -> int:
    """The number of processes of the training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_distributed() -> bool:
    """Return whether the training has several processes."""
    return num_processes() > 1


def is_first() -> bool:
    """Return whether this process is the one that writes the results."""
    return not is_distributed() or dist.get_rank() == 0


def from_first(value: Any) -> Any:
    """`value` of the first process, in all of them."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def by_first(function: Callable[[], Any]) -> Any:
    """The result of `function`, which only the first process calls; an error is raised in all processes.

    A file that the first process writes may appear before or after another one looks for it.
    """
    result, error = None, None
    if is_first():
        try:
            result = function()
        except Exception as exception:
            error = exception
    result, error = from_first((result, error))
    if error is not None:
        raise error
    return result


def own_part(episodes: Any) -> Any:
    """The examples of this process, for named tasks. A meta-batch is divided by the engine."""
    return own_examples(episodes) if is_distributed() and isinstance(episodes, Mapping) else episodes


def largest(value: int) -> int:
    """The largest `value` of all processes."""
    if not is_distributed():
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor([value], device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)
