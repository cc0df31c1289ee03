"""The base class of adapters: which parameters does a task use?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params, with_support_statistics, without_support_statistics
from ..losses import Loss
from .inner_loop import Carry, InnerLoop, Start, StepContext


class Adapter(nn.Module, ABC):
    """From a model and one task's support set to the parameters which that task uses.

    An adapter is pure: the model is the same before and after, and nothing is remembered between
    calls. It may own parameters (a table of heads, learned step sizes); they are ordinary module
    parameters, for the user's optimizer beside the model's.
    """

    @property
    def gradient_evaluations(self) -> int:
        """Backward passes over a support set that one task costs, those of the outer gradient included."""
        return 0

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        """Reject, before anything is computed, a model or `task` ids that cannot work.

        `task` has the leading task axis here, as in `Episode.task`.
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
        """`forward`, with the support set's statistics for the normalization of the query set."""
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
        """The parameters that the task uses.

        Args:
            model: any module; if `params` are given, only its structure is used.
            support: the task's support set, `x` `[S, ...]` and `y` `[S, ...]`.
            loss: `loss(output, y) -> scalar`.
            params: start from these, by name; if None, from the model's own.
            task: the task's ids, or its name.

        Returns:
            Every parameter by name, differentiable with respect to `params`.
        """

    def path(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Iterator[Params]:
        """The parameters at each stage of adaptation; the last are those that a call returns."""
        yield self(model, support, loss, params=params, task=task)

    def inner_loop(self, model: nn.Module, loss: Loss, name: str | None = None) -> InnerLoop:
        """The adapter's computation for one call, step by step; by default `forward`, without steps.

        Args:
            model, loss: as of `forward`.
            name: of the task, if it has one.
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

    def adapt(self, params: Params, learned: Params, support: Batch | None, task: Any) -> Params:
        which = task if self.name is None else self.name
        return self.adapter.forward(self.model, support, self.loss, params=params, task=which)

    def path(self, params: Params, learned: Params, support: Batch | None, task: Any) -> Iterator[Params]:
        which = task if self.name is None else self.name
        return self.adapter.path(self.model, support, self.loss, params=params, task=which)

    def step(self, carry: Carry, context: StepContext, k: Tensor, *, first_order: bool) -> Carry:
        return carry

    def finish(self, carry: Carry, params: Params, k: Tensor) -> Params:
        return carry  # type: ignore[no-any-return]


def initial_params(model: nn.Module, params: Params | None) -> Params:
    """`params`, or the model's own."""
    return dict(model.named_parameters()) if params is None else without_support_statistics(params)


def require_support(support: Batch | None, adapter: Adapter) -> Batch:
    """The support set, or an error that says which adapter needs one."""
    if support is None:
        raise ValueError(
            f"{type(adapter).__name__} adapts to a support set, but this episode has support=None;"
            " give one, or use Shared()."
        )
    return Batch(*support)
