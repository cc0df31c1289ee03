"""Properties of functions that combine gradients; each yields counterexamples in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..aggregators import Aggregator

DRAWS = 20  # random matrices of each property


def apply(fn: Any, matrix: Tensor) -> Tensor:
    """The result of a copy of `fn`, so that no state is carried from one matrix to the next."""
    fn = deepcopy(fn)
    if isinstance(fn, Aggregator):
        return fn(torch.ones(len(matrix), dtype=matrix.dtype), matrix)
    return fn(matrix)  # type: ignore[no-any-return]


def matrices(generator: torch.Generator) -> Iterator[Tensor]:
    """Random matrices of 2 to 5 tasks, with rows of different norms."""
    for draw in range(DRAWS):
        tasks = 2 + draw % 4
        matrix = torch.randn(tasks, 12, generator=generator, dtype=torch.float64)
        yield matrix * (0.5 + torch.rand(tasks, 1, generator=generator, dtype=torch.float64))


def close(a: Tensor, b: Tensor, scale: float) -> bool:
    """Equality up to what iterative solvers reach."""
    return float((a - b).norm()) <= 1e-4 * scale


def _shape(fn: Any, generator: torch.Generator) -> Iterator[str]:
    for matrix in matrices(generator):
        result = apply(fn, matrix)
        if not isinstance(result, Tensor):
            yield f"it returns a {type(result).__name__}, not a tensor"
        elif result.shape != matrix.shape[1:] or result.dtype != matrix.dtype:
            yield f"for {list(matrix.shape)} {matrix.dtype} it returns {list(result.shape)} {result.dtype}"


def _input_unchanged(fn: Any, generator: torch.Generator) -> Iterator[str]:
    for matrix in matrices(generator):
        original = matrix.clone()
        apply(fn, matrix)
        if not torch.equal(matrix, original):
            yield "it writes to the gradients it receives; work on a clone"


def _repeatable(fn: Any, generator: torch.Generator) -> Iterator[str]:
    for matrix in matrices(generator):
        if not torch.equal(apply(fn, matrix.clone()), apply(fn, matrix.clone())):
            yield "two calls on the same gradients differ; draw from a generator with a seed"


def _finite(fn: Any, generator: torch.Generator) -> Iterator[str]:
    base = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    sizes = (1e-10, 1e-5, 1.0, 1e5, 1e10, 1e15)
    yield from _not_finite(fn, {f"entries of size {size:g}": base * size for size in sizes})


def _degenerate(fn: Any, generator: torch.Generator) -> Iterator[str]:
    base = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    no_second = base.clone()
    no_second[1] = 0
    cases = {
        "zeros": torch.zeros_like(base),
        "a row of zeros": no_second,
        "equal rows": base[:1].repeat(3, 1),
        "opposite rows": torch.stack([base[0], -base[0], base[1]]),
        "linearly dependent rows": torch.stack([base[0], base[1], base[0] + base[1]]),
        "one task": base[:1],
    }
    yield from _not_finite(fn, cases)


def _not_finite(fn: Any, cases: dict[str, Tensor]) -> Iterator[str]:
    for name, matrix in cases.items():
        try:
            result = apply(fn, matrix)
        except Exception as error:  # whatever a user's function raises is a finding
            yield f"for {name} it raises {type(error).__name__}: {error}"
            return
        if not bool(result.isfinite().all()):
            yield f"for {name} the result is not finite"


def _permutation(fn: Any, generator: torch.Generator) -> Iterator[str]:
    for matrix in matrices(generator):
        first, second = apply(fn, matrix), apply(fn, matrix.flip(0))
        if not close(first, second, float(matrix.norm())):
            yield f"for {len(matrix)} tasks in reverse order the result differs by {_gap(first, second)}"


def _scale(fn: Any, generator: torch.Generator) -> Iterator[str]:
    for matrix in matrices(generator):
        for factor in (1e-3, 1e3):
            first, second = apply(fn, matrix), apply(fn, factor * matrix) / factor
            if not close(first, second, float(matrix.norm())):
                yield f"A({factor:g} J) / {factor:g} differs from A(J) by {_gap(first, second)}"


def _row_scale(fn: Any, generator: torch.Generator) -> Iterator[str]:
    for matrix in matrices(generator):
        a, b = (torch.rand(len(matrix), 1, generator=generator).double() + 0.1 for _ in range(2))
        first, second = apply(fn, (a + b) * matrix), apply(fn, a * matrix) + apply(fn, b * matrix)
        if not close(first, second, float(matrix.norm())):
            yield f"A((a + b) J) differs from A(a J) + A(b J) by {_gap(first, second)}"


def _equal_gradients(fn: Any, generator: torch.Generator) -> Iterator[str]:
    for matrix in matrices(generator):
        row = matrix[0]
        cosine = torch.cosine_similarity(apply(fn, row.repeat(len(matrix), 1)), row, 0)
        if not float(cosine) > 1 - 1e-6:
            yield f"for {len(matrix)} equal gradients, the cosine with them is {float(cosine):.6f}"


def _non_conflicting(fn: Any, generator: torch.Generator) -> Iterator[str]:
    for matrix in matrices(generator):
        matrix = matrix - 0.5 * matrix.mean(0)  # most pairs conflict
        direction = apply(fn, matrix)
        slopes = matrix @ direction
        worst = int(slopes.argmin())
        if float(slopes[worst]) < -1e-4 * float(matrix.norm()) * float(direction.norm()):
            yield f"for {len(matrix)} tasks, task {worst} has <g, A(J)> = {float(slopes[worst]):.3g}"


def _gap(first: Tensor, second: Tensor) -> str:
    return f"{float((first - second).norm() / first.norm()):.3g} (relative)"


CHECKS: dict[str, Callable[[Any, torch.Generator], Iterator[str]]] = {
    "shape": _shape,
    "input unchanged": _input_unchanged,
    "repeatable": _repeatable,
    "finite": _finite,
    "degenerate": _degenerate,
    "permutation": _permutation,
    "scale": _scale,
    "row scale": _row_scale,
    "equal gradients": _equal_gradients,
    "non-conflicting": _non_conflicting,
}
