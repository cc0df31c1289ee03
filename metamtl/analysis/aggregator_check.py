"""Property tests of a function that combines gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..aggregators import Aggregator
from .aggregator_properties import CHECKS, DRAWS, apply
from .result import Result, bars
from .two_tasks import CLOSED_FORMS

Combine = Callable[[Tensor], Tensor]  # gradients [T, n] -> direction [n]
TOLERANCE = 1e-3  # relative; some implementations regularize by 1e-4
REQUIRED = ("shape", "input unchanged", "repeatable", "finite")


@dataclass(frozen=True)
class AggregatorReport(Result):
    """The properties of a function that combines gradients.

    Attributes:
        checks: for each property None if it holds on all matrices, or a counterexample in words.
        closed_form: the method whose closed form for two tasks the function agrees with, or None.
    """

    checks: dict[str, str | None]
    closed_form: str | None

    @property
    def failed(self) -> tuple[str, ...]:
        """The properties that do not hold."""
        return tuple(name for name, reason in self.checks.items() if reason is not None)

    @property
    def usable(self) -> bool:
        """Whether the properties hold without which no training is possible."""
        return not set(self.failed) & set(REQUIRED)

    def scalars(self) -> dict[str, float]:
        return {name: float(reason is None) for name, reason in self.checks.items()}

    def plot(self, ax: Any = None) -> Any:
        values = [float(reason is None) for reason in self.checks.values()]
        return bars(ax, tuple(self.checks), values, "properties that hold")


def check_aggregator(fn: Aggregator | Combine, *, seed: int = 0) -> AggregatorReport:
    """Test a function that maps per-task gradients `[T, n]` to one direction `[n]`.

    | property | for gradients J and result A(J) |
    |---|---|
    | shape | a tensor `[n]` in the type of J |
    | input unchanged | J is not written to |
    | repeatable | a copy of `fn` returns the same again |
    | finite | the result is finite for entries from 1e-10 to 1e15 |
    | degenerate | and for rows of zeros, equal, opposite and linearly dependent rows, and one task |
    | permutation | A does not depend on the order of the tasks |
    | scale | A(c J) = c A(J) for c > 0 |
    | row scale | A is linear in the norms of the rows |
    | equal gradients | A of equal rows g is a positive multiple of g |
    | non-conflicting | J A(J) >= 0: to first order, no task's loss increases |

    The first four are needed (`usable`); the others are properties of some methods and not of
    others: PCGrad depends on the order of more than two tasks, MGDA is not linear in the norms.

    Args:
        fn: an `Aggregator`, which is called with losses of 1, or a function of the gradients.
        seed: of the random matrices.

    Raises:
        TypeError: `fn` is not callable.

    >>> report = check_aggregator(lambda gradients: gradients.mean(0))
    >>> report.failed, report.closed_form
    (('non-conflicting',), 'Mean')
    """
    if not callable(fn) or isinstance(fn, type):
        remedy = (
            f"an instance, {fn.__name__}()" if isinstance(fn, type) else "a function of gradients [T, n]"
        )
        raise TypeError(f"check_aggregator got {fn!r}; pass {remedy}.")
    checks: dict[str, str | None] = {}
    for name, check in CHECKS.items():
        generator = torch.Generator().manual_seed(seed)
        try:
            checks[name] = next(check(fn, generator), None)
        except Exception as error:  # whatever a user's function raises is a finding
            checks[name] = f"it raises {type(error).__name__}: {error}"
    return AggregatorReport(checks, _closed_form(fn, torch.Generator().manual_seed(seed)))


def _closed_form(fn: Any, generator: torch.Generator) -> str | None:
    """The method that agrees with `fn` on all drawn pairs of gradients; None if there is none."""
    pairs = [torch.randn(2, 12, generator=generator, dtype=torch.float64) for _ in range(DRAWS)]
    pairs += [torch.stack([a, -0.5 * a + b]) for a, b in pairs]  # in conflict
    try:
        results = [apply(fn, pair) for pair in pairs]
        gaps = {
            name: max(float((r - form(p)).norm() / p.norm()) for r, p in zip(results, pairs))
            for name, form in CLOSED_FORMS.items()
        }
    except Exception:  # reported by the property "shape" or "finite"
        return None
    name = min(gaps, key=gaps.__getitem__)
    return name if gaps[name] < TOLERANCE else None
