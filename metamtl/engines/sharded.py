"""Several processes, each of which computes a part of the tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_map

from ..aggregators import Aggregator, Combined
from ..functional import Params
from .auto import Auto
from .base import Engine, TaskGradients, index_task, num_tasks
from .exchange import Exchange, GroupExchange
from .problem import TaskProblem

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CONDITION = 1e-10  # of the Gramian; below it the gradients themselves are exchanged


class Sharded(Engine):
    """The tasks of a meta-batch, divided among the processes of a process group.

    Every process calls `meta_backward` with the same model, the same recipe and the same episodes, and
    computes its share of the tasks. All of them receive the same `.grad`, that of a single process. What is
    exchanged depends on what the aggregator reads, for T tasks, n parameters and W processes:

    | `aggregator.reads` | each process sends about |
    |---|---|
    | "losses" | n numbers: the weighted sum of its gradients |
    | "gramian" | T n / W^2 (W - 1) numbers for the Gramian `[T, T]`, then n |
    | "columns", "rows" | T n / W (W - 1) numbers: its gradients |

    The model is not wrapped: no DistributedDataParallel, no FSDP. A process without a task takes part. An
    error in one process, or a gradient that is not finite, is raised in all of them.

    Args:
        inner: the engine of each process; if None, `Auto()`.
        group: the process group; if None, all processes.

    Raises:
        RuntimeError: no process group is initialized; an error in another process.
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

    def gradients(self, problem: TaskProblem, shared: Params, own: Params, data: Any) -> TaskGradients:
        exchange = self._exchange(problem, data)
        grads: TaskGradients = self._compute(
            exchange, data, lambda part: self.inner.gradients(problem, shared, own, part)
        )
        count = len(range(*exchange.tasks.indices(num_tasks(data))))

        def of_this_process(rows: Tensor) -> Tensor:
            return rows[:count]  # a process without a task has computed one that does not count

        return TaskGradients(
            losses=exchange.gather(of_this_process(grads.losses)),
            shared={name: of_this_process(rows) for name, rows in grads.shared.items()},
            adapter_params={name: of_this_process(rows) for name, rows in grads.adapter_params.items()},
            task_specific={},
            exchange=exchange,
        )

    def outputs(self, problem: TaskProblem, data: Any, *, every: bool = False) -> list[Any]:
        exchange = self._exchange(problem, data)
        count = len(range(*exchange.tasks.indices(num_tasks(data))))
        stages = self._compute(exchange, data, lambda part: self.inner.outputs(problem, part, every=every))

        def gathered(leaf: Any) -> Any:
            return exchange.gather(leaf[:count]) if isinstance(leaf, Tensor) else leaf

        return [tree_map(gathered, stage) for stage in stages]

    def _exchange(self, problem: TaskProblem, data: Any) -> GroupExchange:
        params = [*problem.model.parameters(), *problem.adapter.parameters()]
        device = params[0].device if params else torch.device("cpu")
        return GroupExchange(self.group, num_tasks(data), device)

    def _compute(self, exchange: GroupExchange, data: Any, function: Callable[[Any], Any]) -> Any:
        """`function` of this process's tasks; of the first task, if it has none."""
        tasks = exchange.tasks
        part = index_task(data, tasks if tasks.stop > tasks.start else slice(0, 1))
        result, error = None, None
        try:
            result = function(part)
        except Exception as exception:  # raised below, in all processes
            error = exception
        exchange.raise_together(error)
        return result


def combine(
    aggregator: Aggregator,
    losses: Tensor,
    rows: Tensor,
    names: Sequence[str] | None,
    exchange: Exchange,
) -> Combined:
    """`aggregator.combine`, given the gradients of this process's tasks.

    Args:
        losses: of all tasks, `[T]`.
        rows: the gradients of this process's tasks, `[t, n]`.
        names: of named tasks.
        exchange: among the processes.
    """
    if not isinstance(exchange, GroupExchange):
        return aggregator.combine(losses, rows, names)
    if aggregator.reads == "losses":
        combined = aggregator.combine(losses, None, names)
        assert combined.weights is not None
        own = exchange.select(combined.weights).to(rows)
        return combined._replace(direction=exchange.sum(own @ rows))
    if aggregator.reads == "gramian" and rows.shape[1] > len(losses):
        values, vectors = torch.linalg.eigh(exchange.gramian(rows))
        if float(values[0]) > CONDITION * float(values[-1]):
            # Any matrix R with R R^T = J J^T has the same weights w as J. From the direction w^T R, w.
            root = ((vectors * values.sqrt()) @ vectors.T).to(rows)
            combined = aggregator.combine(losses, root, names)
            assert combined.direction is not None
            weights = combined.weights
            if weights is None:
                weights = torch.linalg.solve(root.double().T, combined.direction.double())
            return combined._replace(direction=exchange.sum(exchange.select(weights).to(rows) @ rows))
    return aggregator.combine(losses, exchange.gather(rows), names)
