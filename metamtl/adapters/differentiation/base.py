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
    """Base class: how the outer gradient is computed through the K steps of `Gradient`.

    Learned rates and the weight decay of a rule are differentiated in every step by all subclasses.

    Attributes:
        proximal: weight of the term `1/2 |phi - theta|^2`, which the steps minimize with the support loss.
        runs_compiled: whether `engines.Compiled` supports it.
        checkpoint_every: the number of steps between stored parameters; None if autograd records all steps.
    """

    proximal: ClassVar[float] = 0.0
    runs_compiled: ClassVar[bool] = True
    checkpoint_every: ClassVar[int | None] = None

    @abstractmethod
    def second_order(self, k: int, steps: int) -> bool:
        """Whether the outer gradient differentiates the inner gradient of step `k` of `steps`."""

    def any_second_order(self, steps: int) -> bool:
        """Whether second derivatives are computed in any step."""
        return any(self.second_order(k, steps) for k in range(steps))

    def check(self, lr: Any, rule: Rule, adapts: Any) -> None:  # noqa: B027  (most have no condition)
        """Raise a ValueError if the options of `Gradient` contradict this way of differentiation."""

    def adapt(self, loop: GradientLoop, params: Params, adapter_params: Params, support: Any) -> Params:
        """The parameters after all steps."""
        return run(loop, params, adapter_params, support, None, self.checkpoint_every)

    def path(
        self, loop: GradientLoop, params: Params, adapter_params: Params, support: Any
    ) -> Iterator[Params]:
        """The parameters after 0, 1, ..., K steps."""
        return stages(loop, params, adapter_params, support, None)
