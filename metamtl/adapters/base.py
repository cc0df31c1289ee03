"""Base class of adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params, forward, with_support_statistics, without_support_statistics
from ..losses import Loss
from .inner_loop import Carry, InnerLoop, Start, StepContext


class Adapter(nn.Module, ABC):
    """Base class of adapters. An adapter maps a model and a support set to the parameters of one task.

    An adapter is a pure function: it does not change the model and keeps no state between calls. It may
    have parameters of its own (a table of heads, learned step sizes). They are ordinary module parameters;
    pass them to the optimizer together with those of the model.
    """

    @property
    def transductive(self) -> bool:
        """Whether the prediction for one query example depends on the other query examples."""
        return False

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        """Reject an unsuitable model or unsuitable task ids before anything is computed.

        Here `task` has a leading task axis, as in `Episode.task`.
        """

    def __call__(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        """`forward`, and the statistics of the support set, which normalize the query set."""
        adapted = super().__call__(model, support, loss, params=params, task=task)
        x = None if support is None else support[0]
        return with_support_statistics(model, adapted, x, task)

    @abstractmethod
    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        """Compute the parameters of the task.

        Args:
            model: any module; if `params` is not None, only its structure is used.
            support: the task's support set, `x` `[S, ...]` and `y` `[S, ...]`.
            loss: `loss(output, y) -> scalar`.
            params: the initial parameters by name; if None, those of the model.
            task: the task's ids, or its name.

        Returns:
            All parameters by name, differentiable with respect to `params`. Names that begin with
            `"adapter:"` are values for `predict`; the model has no such parameters.
        """

    def predict(self, model: nn.Module, params: Params, x: Any, task: Any = None, **call: Any) -> Any:
        """The output for the inputs `x` with the parameters of a task; by default, that of the model.

        Args:
            model: the model.
            params: the result of a call of the adapter.
            x: the inputs of the model, `[Q, ...]`.
            task: the name of the task; None if it has none.
            call: further arguments of `functional.forward`.
        """
        return forward(model, params, x, task, **call)

    def path(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Iterator[Params]:
        """The parameters at each stage of adaptation. The last ones are those that a call returns."""
        yield self(model, support, loss, params=params, task=task)

    def inner_loop(self, model: nn.Module, loss: Loss, name: str | None = None) -> InnerLoop:
        """The adapter's computation for one call, step by step. The default is `forward`, without steps.

        Args:
            model, loss: as in `forward`.
            name: the name of the task; None if it has none.
        """
        return _NoSteps(self, model, loss, name)


@dataclass(frozen=True)
class _NoSteps(InnerLoop):
    adapter: Adapter
    model: nn.Module
    loss: Loss
    name: str | None
    num_steps: int = 0
    reads: tuple[str, ...] = ()
    starts_from_params: bool = False

    def init(self, params: Params, support: Batch | None, task: Any) -> Start:
        return Start(self.adapt(params, {}, support, task), ())

    def adapt(self, params: Params, adapter_params: Params, support: Batch | None, task: Any) -> Params:
        task_key = task if self.name is None else self.name
        return self.adapter.forward(self.model, support, self.loss, params=params, task=task_key)

    def path(
        self, params: Params, adapter_params: Params, support: Batch | None, task: Any
    ) -> Iterator[Params]:
        task_key = task if self.name is None else self.name
        return self.adapter.path(self.model, support, self.loss, params=params, task=task_key)

    def step(self, carry: Carry, context: StepContext, k: Tensor, *, first_order: bool) -> Carry:
        return carry

    def finish(self, carry: Carry, params: Params, k: Tensor) -> Params:
        return carry  # type: ignore[no-any-return]


def initial_params(model: nn.Module, params: Params | None) -> Params:
    """`params`; if None, the parameters of the model."""
    return dict(model.named_parameters()) if params is None else without_support_statistics(params)


def require_support(support: Batch | None, adapter: Adapter) -> Batch:
    """The support set; an error that names the adapter if there is none."""
    if support is None:
        raise ValueError(
            f"{type(adapter).__name__} adapts to a support set, but this episode has support=None;"
            " pass a support set, or use Shared()."
        )
    return Batch(*support)
