"""One task as a function of the parameters: what every engine runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..adapters import Adapter
from ..episode import Batch, Episode
from ..functional import Params, forward
from ..objectives import Adaptation, Objective
from ..task import Loss


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
    ) -> None:
        self.model, self.adapter, self.objective = model, adapter, objective
        self.episode, self.name = episode, name
        self.loss = checked_labels(loss, episode)
        self.constants = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
        self.data = (episode.support, episode.query, episode.task)
        self.given: Any = None  # the model's output on the query set, where tasks share one pass
        self._end: Params = {}
        self._measured = 0

    @property
    def gradient_evaluations(self) -> int:
        """Backward passes over a support or query set that one task took; known after the first run."""
        adapted = 0 if self.unadapted else self.adapter.gradient_evaluations
        return adapted + self._measured

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
        args = (self.model, support, self.loss)
        kwargs = {"params": {**self.constants, **shared}, "task": which}
        return functional_call(self.adapter, own, args, kwargs) if own else self.adapter(*args, **kwargs)

    def path(self, shared: Params, data: Any) -> Iterator[Params]:
        """The parameters at each stage of adaptation."""
        support, _, task = data
        params = {**self.constants, **shared}
        which = task if self.name is None else self.name
        return self.adapter.path(self.model, support, self.loss, params=params, task=which)

    def measure(self, params: Params, batch: Batch) -> Tensor:
        """The task's loss on a batch."""
        if torch.is_grad_enabled():
            self._measured += 1
        if self.given is not None and params is self._end and batch[0] is self.episode.query[0]:
            return self.loss(self.given, batch[1])
        return self.loss(self.output(params, batch[0]), batch[1])

    def output(self, params: Params, x: Any) -> Any:
        """The model's output, from the task's own head where it has a name."""
        return forward(self.model, params, x, self.name)

    def __call__(self, shared: Params, own: Params, data: Any) -> tuple[Tensor, Tensor]:
        self._measured = 0
        support, query, _ = data
        end = self.adapt(shared, own, data)
        adaptation = Adaptation(shared, end, support, query, self.measure)
        objective = self.objective(adaptation)
        with torch.no_grad():  # where the objective did not need it, the query loss is only reported
            return objective, adaptation.query_loss


def checked_labels(loss: Loss, episode: Episode) -> Loss:
    """`loss`, refusing labels that the output has no class for.

    The range of the labels is read once, here: inside an engine, or on a GPU, it is too late to look.
    """
    if loss is not F.cross_entropy and not isinstance(loss, nn.CrossEntropyLoss):
        return loss
    ignored = loss.ignore_index if isinstance(loss, nn.CrossEntropyLoss) else -100
    top = -1 if episode.ways is None else episode.ways - 1
    for batch in (episode.support, episode.query):
        y = None if batch is None else batch[1]
        if episode.ways is None and isinstance(y, Tensor) and not y.is_floating_point() and y.numel():
            kept = y[y != ignored]
            top = max(top, int(kept.max())) if kept.numel() else top
            if kept.numel() and int(kept.min()) < 0:
                raise ValueError(f"labels reach down to {int(kept.min())}; classes are counted from 0.")

    def checked(output: Any, y: Any) -> Tensor:
        if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] <= top:
            raise ValueError(
                f"labels reach up to {top}, but the model's output has {output.shape[1]} classes"
                f" (labels 0 to {output.shape[1] - 1}); widen the head or fix the labels."
            )
        return loss(output, y)

    return checked
