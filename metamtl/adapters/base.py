"""What an adapter is: it answers which parameters a task uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params, with_support_statistics, without_support_statistics
from ..task import Loss


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
        """Refuse, before anything is computed, a model or `task` ids that cannot work.

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
        """`forward`, and what the support set says about the query set's normalisation."""
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
            model: any module; only its structure is used where `params` are given.
            support: the task's support set, `x` `[S, ...]` and `y` `[S, ...]`.
            loss: `loss(output, y) -> scalar`.
            params: start from these, by name; the model's own, where None.
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


def start(model: nn.Module, params: Params | None) -> Params:
    """`params`, or the model's own."""
    return dict(model.named_parameters()) if params is None else without_support_statistics(params)


def needed(support: Batch | None, adapter: Adapter) -> Batch:
    """The support set, or an error that says which adapter needs one."""
    if support is None:
        raise ValueError(
            f"{type(adapter).__name__} adapts to a support set, but this episode has support=None;"
            " give one, or use Shared()."
        )
    return Batch(*support)
