"""One task as a function of the parameters: what every engine runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..adapters import Adapter
from ..episode import Batch, Episode
from ..functional import Params, forward, trainable, trainable_and_frozen, with_support_statistics
from ..objectives import Adaptation, Objective
from ..task import Loss, Metric


class TaskFunction:
    """`function(shared, own, data) -> (objective, query loss)` for one task of an episode.

    `shared` are the model's trainable parameters, `own` the adapter's, `data` is one task's part of
    `self.data`. Nothing else is read that could differ between tasks, so any engine may batch it.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        objective: Objective,
        loss: Loss,
        episode: Episode,
        name: str | None = None,
        constants: Params | None = None,
    ) -> None:
        self.model, self.adapter, self.objective = model, adapter, objective
        self.episode, self.name = episode, name
        self.top = check_labels(loss, episode)
        self.loss = matched(loss) if self.top is None else checked(loss, self.top)
        # Functions of one model with equal identities compute the same.
        self.identity = (repr(adapter), id(objective), id(loss), self.top, name)
        self.constants = trainable_and_frozen(model)[1] if constants is None else constants
        self.data = (episode.support, episode.query, episode.task)
        self.given: Any = None  # the model's output on the query set, where tasks share one pass
        # Backward passes over a support or query set that one task takes; known after a run.
        self.gradient_evaluations = 0
        self._end: Params = {}

    @property
    def unadapted(self) -> bool:
        """Whether this is a named task without a support set, which uses the parameters as they are."""
        return self.name is not None and self.episode.support is None

    def adapt(self, shared: Params, own: Params, data: Any) -> Params:
        """The parameters that the task uses."""
        if self.unadapted:
            self._end = {**self.constants, **shared}
            return self._end
        support, _, task = data
        which = task if self.name is None else self.name
        args: tuple[Any, ...] = (self.model, support, self.loss)
        kwargs: dict[str, Any] = {"params": {**self.constants, **shared}, "task": which}
        return functional_call(self.adapter, own, args, kwargs) if own else self.adapter(*args, **kwargs)

    def path(self, shared: Params, data: Any) -> Iterator[Params]:
        """The parameters at each stage of adaptation."""
        support, _, task = data
        params = {**self.constants, **shared}
        which = task if self.name is None else self.name
        for stage in self.adapter.path(self.model, support, self.loss, params=params, task=which):
            yield with_support_statistics(self.model, stage, None if support is None else support[0], which)

    def measure(self, params: Params, batch: Batch) -> Tensor:
        """The task's loss on a batch."""
        if torch.is_grad_enabled():
            self.gradient_evaluations += 1
        if self.given is not None and params is self._end and batch[0] is self.episode.query[0]:
            return self.loss(self.given, batch[1])
        return self.loss(self.output(params, batch[0]), batch[1])

    def output(self, params: Params, x: Any) -> Any:
        """The model's output, from the task's own head where it has a name."""
        output = forward(self.model, params, x, self.name)
        if self.top is not None:
            refuse(output, self.top)
        return output

    def __call__(self, shared: Params, own: Params, data: Any) -> tuple[Tensor, Tensor]:
        self.gradient_evaluations = 0 if self.unadapted else self.adapter.gradient_evaluations
        support, query, _ = data
        end = self.adapt(shared, own, data)
        adaptation = Adaptation(shared, end, support, query, self.measure)
        objective = self.objective(adaptation)
        with torch.no_grad():  # where the objective did not need it, the query loss is only reported
            return objective, adaptation.query_loss


class Evaluation:
    """`evaluation(data) -> [{name: value}]` for one task: what its adaptation reaches on the query set.

    Args:
        function: of the tasks.
        metrics: what to measure.
        every: after every stage of adaptation; only after the last, where False.
    """

    def __init__(self, function: TaskFunction, metrics: Mapping[str, Metric], *, every: bool) -> None:
        self.function, self.metrics, self.every = function, metrics, every
        self.shared = trainable(function.model)

    def __call__(self, data: Any) -> list[dict[str, Tensor]]:
        if self.every:
            return [self.measure(params, data[1]) for params in self.function.path(self.shared, data)]
        return [self.measure(self.function.adapt(self.shared, {}, data), data[1])]

    def measure(self, params: Params, query: Any) -> dict[str, Tensor]:
        """One value of each metric."""
        output = self.function.output(params, query[0])
        return {name: metric(output, query[1]).mean() for name, metric in self.metrics.items()}


def check_labels(loss: Loss, episode: Episode) -> int | None:
    """The highest label of a classification episode; None where the loss is no cross-entropy.

    Read once, here: inside an engine, or on a GPU, it is too late to look.
    """
    if loss is not F.cross_entropy and not isinstance(loss, nn.CrossEntropyLoss):
        return None
    ignored = loss.ignore_index if isinstance(loss, nn.CrossEntropyLoss) else -100
    top = -1 if episode.ways is None else episode.ways - 1
    for batch in (episode.support, episode.query):
        y = None if batch is None else batch[1]
        if isinstance(y, Tensor) and y.is_cuda and episode.ways is not None:
            continue  # looking would wait for the device
        if isinstance(y, Tensor) and not y.is_floating_point() and y.numel():
            lowest, highest = _span(y)
            if lowest <= ignored <= highest:
                kept = y[y != ignored]
                if not kept.numel():
                    continue
                lowest, highest = _span(kept)
            if lowest < 0:
                raise ValueError(f"labels reach down to {lowest}; classes are counted from 0.")
            top = max(top, highest)
    return top


def _span(y: Tensor) -> tuple[int, int]:
    lowest, highest = y.aminmax()
    return int(lowest), int(highest)


def checked(loss: Loss, top: int) -> Loss:
    """`loss`, refusing an output that has no class for the label `top`."""

    def refusing(output: Any, y: Any) -> Tensor:
        refuse(output, top)
        return loss(output, y)

    return refusing


def matched(loss: Loss) -> Loss:
    """`loss`; where it compares entry by entry, refusing what torch would broadcast with a mere warning."""
    if loss not in (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss) and not isinstance(
        loss, (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
    ):
        return loss

    def refusing(output: Any, y: Any) -> Tensor:
        if isinstance(output, Tensor) and isinstance(y, Tensor) and output.shape != y.shape:
            raise ValueError(
                f"the model's output has shape {list(output.shape)}, the targets {list(y.shape)}, and torch"
                " would broadcast one against the other; give the targets the shape of the head's output."
            )
        return loss(output, y)

    return refusing


def refuse(output: Any, top: int) -> None:
    """Raise where an output `[B, N]` has no class for the label `top`."""
    if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] <= top:
        raise ValueError(
            f"labels reach up to {top}, but the model's output has {output.shape[1]} classes"
            f" (labels 0 to {output.shape[1] - 1}); widen the head or fix the labels."
        )
