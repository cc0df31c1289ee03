"""Several processes, each of which computes a part of the tasks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_map

from ..aggregators import Aggregator, Combined
from ..functional import Params
from .auto import Auto
from .base import Engine, TaskGradients, TaskGroup, index_task, num_tasks
from .exchange import LOCAL, Exchange
from .problem import TaskProblem
from .shards import ExampleShards, TaskShards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

if dist.is_available():
    # Default arguments of this module are the process group at its first import. If torch.func imported it
    # after init_process_group, the group would outlive destroy_process_group, and its threads could abort
    # the process while the interpreter shuts down.
    import torch.distributed.nn.functional

CONDITION = 1e-10  # of the Gramian; below it the gradients themselves are exchanged


class Sharded(Engine):
    """A meta-batch or named tasks, divided among the processes of a process group.

    Every process calls `meta_backward` with the same model and the same recipe. All of them receive the
    same `.grad`, that of a single process, with every aggregator.

    - A meta-batch: every process passes the same episodes and computes its share of the tasks.
    - Named tasks: every process passes its own examples of every task, as in data-parallel training
      (`own_examples` selects them from a batch that all processes have). The loss of a task is the mean
      over the labels of all processes, so the loss function must be a mean over the labels that are not
      missing. A process without examples of a task passes tensors of length 0.

    What is exchanged depends on what the aggregator reads; docs/distributed.md has the formulas. The model
    is not wrapped: no DistributedDataParallel, no FSDP. An error in one process, or a gradient that is not
    finite, is raised in all of them.

    Args:
        inner: the engine of each process; if None, `Auto()`.
        group: the process group; if None, all processes.

    Raises:
        RuntimeError: no process group is initialized; an error in another process.
        ValueError: the processes have different named tasks, parameters or support sets.
    """

    def __init__(self, inner: Engine | None = None, group: ProcessGroup | None = None) -> None:
        if inner is not None and not isinstance(inner, Engine):
            raise TypeError(f"inner={inner!r} is not an engine; pass engines.Vmap(), for example, or None.")
        if isinstance(inner, Sharded):
            raise TypeError("inner is a Sharded engine already; pass engines.Vmap(), for example, or None.")
        self.inner, self.group = Auto() if inner is None else inner, group

    def __repr__(self) -> str:
        return f"Sharded({self.inner!r})"

    @property
    def compile_seconds(self) -> float:
        """The seconds that the inner engine spent on compiling."""
        return getattr(self.inner, "compile_seconds", 0.0)

    def check(self, model: nn.Module) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "engines.Sharded needs an initialized process group: start the program with torchrun and"
                " call torch.distributed.init_process_group() before the first step."
            )
        self.inner.check(model)

    def gradients(
        self, problem: TaskProblem, shared: Params, adapter_params: Params, data: Any
    ) -> TaskGradients:
        group = TaskGroup(problem, data, range(num_tasks(data)))
        return self.group_gradients([group], shared, adapter_params)

    def group_gradients(
        self, groups: Sequence[TaskGroup], shared: Params, adapter_params: Params
    ) -> TaskGradients:
        total = sum(len(group.positions) for group in groups)
        exchange = self._exchange(groups[0].problem, total)
        tasks = exchange.tasks
        count = tasks.stop - tasks.start
        own = select_tasks(groups, tasks if count else slice(0, 1))
        with exchange.together():
            grads = self.inner.group_gradients(own, shared, adapter_params)

        def of_this_process(rows: Tensor) -> Tensor:
            return rows[:count]  # a process without a task has computed one that does not count

        return TaskGradients(
            losses=exchange.full(of_this_process(grads.losses)),
            shared={name: of_this_process(rows) for name, rows in grads.shared.items()},
            adapter_params={name: of_this_process(rows) for name, rows in grads.adapter_params.items()},
            task_specific={},
            exchange=exchange,
        )

    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        exchange = self._exchange(problem, num_tasks(data))
        tasks = exchange.tasks
        count = tasks.stop - tasks.start
        own = index_task(data, tasks if count else slice(0, 1))
        with exchange.together():
            stages = self.inner.outputs(problem, own, every=every)

        def gathered(leaf: Any) -> Any:
            return exchange.full(leaf[:count]) if isinstance(leaf, Tensor) else leaf

        return [tree_map(gathered, stage) for stage in stages]

    def _exchange(self, problem: TaskProblem, count: int) -> TaskShards:
        return TaskShards(self.group, _device(problem.model, problem.adapter), count)


def select_tasks(groups: Sequence[TaskGroup], tasks: slice) -> list[TaskGroup]:
    """The groups of the tasks at the positions `tasks.start .. tasks.stop - 1` of a meta-batch."""
    selected = []
    for problem, data, positions in groups:
        start, stop = (bisect_left(positions, bound) for bound in (tasks.start, tasks.stop))
        if start < stop:
            selected.append(TaskGroup(problem, index_task(data, slice(start, stop)), positions[start:stop]))
    return selected


def _device(*modules: nn.Module) -> torch.device:
    params = (param for module in modules for param in module.parameters())
    return next((param.device for param in params), torch.device("cpu"))


def example_exchange(engine: Any, model: Any, episodes: Any) -> Exchange:
    """How processes exchange results of these episodes; `LOCAL` for a meta-batch, whose engine does."""
    if isinstance(engine, Sharded) and isinstance(model, nn.Module) and isinstance(episodes, Mapping):
        engine.check(model)
        return ExampleShards(engine.group, _device(model))
    return LOCAL


def combine(
    aggregator: Aggregator,
    losses: Tensor,
    rows: Tensor,
    names: Sequence[str] | None,
    exchange: Exchange,
) -> tuple[Combined, bool]:
    """`aggregator.combine`, given the part of the gradients that this process has.

    For aggregators that read more than the losses.

    Args:
        losses: of all tasks, `[T]`.
        rows: the part of the gradients `[T, n]`.
        names: of named tasks.
        exchange: among the processes.

    Returns:
        The result, and whether the gradients of the parameters are the sums of those that follow from the
        direction in each process.
    """
    if exchange is LOCAL:
        return aggregator.combine(losses, rows, names), False
    weights = None
    if aggregator.reads == "gramian":
        values, vectors = torch.linalg.eigh(exchange.gramian(rows))
        if float(values[0]) > CONDITION * float(values[-1]):
            # Any matrix R with R R^T = J J^T has the same weights w as J. From the direction w^T R, w.
            root = ((vectors * values.sqrt()) @ vectors.T).to(rows)
            combined = aggregator.combine(losses, root, names)
            weights = combined.weights
            if weights is None:
                assert combined.direction is not None
                weights = torch.linalg.solve(root.double().T, combined.direction.double())
    if weights is not None:
        direction = exchange.select(weights).to(rows) @ rows
        return combined._replace(direction=direction), True
    combined = aggregator.combine(losses, exchange.full(rows), names)
    assert combined.direction is not None
    return combined._replace(direction=exchange.part(combined.direction)), exchange.by_columns
