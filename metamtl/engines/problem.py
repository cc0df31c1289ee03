"""The computation of one task as pure functions of the parameters, which every engine runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, Differentiation, Gradient
from ..adapters.inner_loop import InnerLoop
from ..episode import Batch, Episode
from ..functional import (
    Params,
    Structure,
    forward,
    structure_of,
    substituted,
    trainable_and_frozen,
    with_support_statistics,
)
from ..functional.labels import is_empty
from ..losses import Loss
from ..objectives import Adaptation, Objective
from ..objectives.base import reads


@dataclass(frozen=True)
class TaskProblem:
    """The objective and the query loss of one task, as functions of parameters and the task's data.

    `shared` holds the model's trainable parameters, `adapter_params` those of the adapter, and `data` is
    `(support, query, task ids)` of one task. Every value that differs between tasks is an argument, so any
    engine may batch the computation. The input has already been checked.

    Attributes:
        frozen: the model's other parameters.
        structure, adapter_structure: where the model and the adapter store their tensors.
        loop: the adapter's computation for this call.
        name: the name of a named task; None in a meta-batch.
        adapts: whether the task is adapted. A named task without a support set uses the parameters
            unchanged.
        leftovers: attributes that the model's forward pass sets, which compiled code restores.
    """

    model: nn.Module
    adapter: Adapter
    objective: Objective
    loss: Loss
    frozen: Params
    structure: Structure
    adapter_structure: Structure
    loop: InnerLoop
    name: str | None = None
    adapts: bool = True
    leftovers: tuple[tuple[nn.Module, str], ...] = ()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        adapter: Adapter,
        objective: Objective,
        loss: Loss,
        episode: Episode,
        name: str | None = None,
    ) -> TaskProblem:
        """The problem of the tasks of `episode`."""
        return cls(
            model=model,
            adapter=adapter,
            objective=objective,
            loss=loss,
            frozen=trainable_and_frozen(model)[1],
            structure=structure_of(model),
            adapter_structure=structure_of(adapter),
            loop=adapter.inner_loop(model, loss, name),
            name=name,
            adapts=name is None or episode.support is not None,
        )

    def rebuilt(self) -> TaskProblem:
        """This problem, with what a first forward pass has shown of the functions that the model calls."""
        return replace(
            self,
            structure=structure_of(self.model),
            loop=self.adapter.inner_loop(self.model, self.loss, self.name),
        )

    @property
    def differentiations(self) -> list[Differentiation]:
        """How the outer gradient is computed through each inner loop of the adapter."""
        return [part.differentiation for part in self.adapter.modules() if isinstance(part, Gradient)]

    def adapt(self, shared: Params, adapter_params: Params, support: Batch | None, task: Any) -> Params:
        """The parameters that the task uses."""
        params = {**self.frozen, **shared}
        if not self.adapts:
            return params
        task_key = task if self.name is None else self.name
        all_params = adapter_params or dict(self.adapter.named_parameters())
        with self.substituted_adapter(adapter_params):
            adapted = self.loop.adapt(params, all_params, support, task_key)
        return self._with_statistics(adapted, support, task_key)

    def substituted_adapter(self, adapter_params: Params) -> AbstractContextManager[None]:
        """Context manager in which the adapter has the parameters `adapter_params`, if there are any."""
        return (
            substituted(self.adapter, self.adapter_structure, adapter_params)
            if adapter_params
            else nullcontext()
        )

    def path(
        self, shared: Params, support: Batch | None, task: Any, adapter_params: Params | None = None
    ) -> Iterator[Params]:
        """The parameters at each stage of adaptation, with `adapter_params` for the adapter's own."""
        params, task_key = {**self.frozen, **shared}, task if self.name is None else self.name
        all_params = adapter_params or dict(self.adapter.named_parameters())
        with self.substituted_adapter(adapter_params or {}):
            for stage in self.loop.path(params, all_params, support, task_key):
                yield self._with_statistics(stage, support, task_key)

    def stages(
        self, shared: Params, adapter_params: Params, support: Batch | None, task: Any
    ) -> tuple[Params, ...]:
        """The stages of adaptation that the objective reads; the last one is its end."""
        what = reads(self.objective)
        if what == "stages" and self.adapts:
            return tuple(self.path(shared, support, task, adapter_params))
        with torch.no_grad() if what == "adapter" else nullcontext():
            return (self.adapt(shared, adapter_params, support, task),)

    def again(self, adapter_params: Params, support: Batch | None, task: Any) -> Callable[[Params], Params]:
        """The adaptation to the task as a function of the shared parameters."""
        return lambda shared: self.adapt(shared, adapter_params, support, task)

    def _with_statistics(self, params: Params, support: Batch | None, task: Any) -> Params:
        x = None if support is None else support[0]
        return with_support_statistics(self.model, params, x, task, structure=self.structure)

    def output(self, params: Params, x: Any) -> Any:
        """The output of the adapted model; for a named task, the output of its own head."""
        predict = self.adapter.predict if self.adapts else forward
        return predict(self.model, params, x, self.name, structure=self.structure, leftovers=self.leftovers)

    def measure(self, params: Params, batch: Batch) -> Tensor:
        """The task's loss on a batch.

        Raises:
            ValueError: the batch is empty, so that it has no mean loss.
        """
        if is_empty(batch):
            where = "" if self.name is None else f"task {self.name!r}: "
            raise ValueError(
                f"{where}the support or the query set is empty (queries=0), but the objective needs"
                " the loss on it; draw at least one example, or use an objective that reads only"
                " parameters, such as objectives.displacement (recipes.reptile)."
            )
        return self.loss(self.output(params, batch[0]), batch[1])

    def result(
        self,
        start: Params,
        stages: Sequence[Params],
        support: Batch | None,
        query: Batch,
        output: Any = None,
        adapt: Callable[[Params], Params] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The objective, and the query loss; the loss on the support set if there are no queries.

        Args:
            start: the shared parameters.
            stages: the stages of adaptation; the last one has the parameters that the task uses.
            output: the model's output on the query set, if it is known.
            adapt: as in `Adaptation`.
        """
        query_loss = None if output is None else self.loss(output, query[1])
        task = Adaptation(
            start, stages[-1], support, Batch(*query), self.measure, query_loss, tuple(stages), adapt
        )
        objective = self.objective(task)
        with torch.no_grad():  # if the objective does not use the query loss, it is only reported
            if support is not None and is_empty(query):
                return objective, self.measure(task.end, support)
            return objective, task.query_loss

    def __call__(self, shared: Params, adapter_params: Params, data: Any) -> tuple[Tensor, Tensor]:
        """`result` after adaptation."""
        support, query, task = data
        stages = self.stages(shared, adapter_params, support, task)
        return self.result(shared, stages, support, query, adapt=self.again(adapter_params, support, task))
