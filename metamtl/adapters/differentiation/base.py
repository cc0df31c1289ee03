"""Base class of the ways to differentiate through an inner loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...functional import Params
from ...rules import Rule
from ..inner_loop import run, stages

if TYPE_CHECKING:
    from ..gradient_loop import GradientLoop


@dataclass(frozen=True)
class Differentiation(ABC):
    """How the outer gradient goes through the K steps of `Gradient`.

    Learned rates and the weight decay of a rule are differentiated in every step, whatever the way.

    Attributes:
        proximal: weight of `1/2 |phi - theta|^2`, which the steps minimize beside the support loss.
        runs_compiled: whether `engines.Compiled` has a form of it.
        checkpoint_every: the number of steps between stored parameters; None if autograd records all steps.
    """

    proximal: ClassVar[float] = 0.0
    runs_compiled: ClassVar[bool] = True
    checkpoint_every: ClassVar[int | None] = None

    @abstractmethod
    def second_order(self, k: int, steps: int) -> bool:
        """Whether the outer gradient goes through the inner gradient of step `k` of `steps`."""

    def any_second_order(self, steps: int) -> bool:
        """Whether second derivatives are computed at all."""
        return any(self.second_order(k, steps) for k in range(steps))

    def gradient_evaluations(self, steps: int, all_adapted: bool) -> int:
        """Backward passes over a support set, inner and outer loop together."""
        # The outer gradient goes back once more through every inner gradient that it differentiates.
        return steps + sum(self.second_order(k, steps) for k in range(steps))

    def check(self, lr: Any, rule: Rule, adapts: Any) -> None:  # noqa: B027  (most have none)
        """Raise a ValueError if the options of `Gradient` contradict this way."""

    def adapt(self, loop: GradientLoop, params: Params, learned: Params, support: Any) -> Params:
        """The parameters after all steps."""
        return run(loop, params, learned, support, None, self.checkpoint_every)

    def path(self, loop: GradientLoop, params: Params, learned: Params, support: Any) -> Iterator[Params]:
        """The parameters after 0, 1, ..., K steps."""
        return stages(loop, params, learned, support, None)
