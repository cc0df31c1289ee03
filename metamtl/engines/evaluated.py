"""Evaluations whose inner steps are calls of one compiled step of first order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

from torch import Tensor

from ..adapters import Gradient
from ..episode import Batch
from ..functional import Params, told_by_adapter, trainable
from .convolution import as_products
from .stepwise import Stepwise
from .task import Evaluation, TaskFunction
from .vmap import Vmap


def takes_steps(function: TaskFunction) -> bool:
    """Whether adaptation is steps that `Evaluated` can compile."""
    adapter = function.adapter
    return (
        isinstance(adapter, Gradient)
        and adapter.steps > 0
        and adapter.order != "implicit"
        and not told_by_adapter(function.model)
    )


class Evaluated:
    """`evaluated(evaluation, data)`: what is measured of a chunk of tasks.

    Args:
        function: the task function of the work; it `takes_steps`.
        batched: whether data have a leading task axis; else they are of one task.
    """

    def __init__(self, function: TaskFunction, batched: bool) -> None:
        self.function, self.batched = function, batched
        self.steps = Stepwise(function, batched, as_products if batched else nullcontext)

    def __call__(self, evaluation: Evaluation, data: Any) -> list[dict[str, Tensor]]:
        rest = {**evaluation.function.constants, **_detached(trainable(self.function.model))}

        def measure(part: Any) -> dict[str, Tensor]:
            adapted, query = part
            return evaluation.measure({**rest, **adapted}, query)

        run = (lambda part: Vmap().map(measure, part)) if self.batched else measure
        first = 0 if evaluation.every else self.steps.adapter.steps
        return [run((adapted, data[1])) for adapted in islice(self._path(data), first, None)]

    def first_step(self, data: Any) -> Params:
        """How far the first step goes."""
        start, end = islice(self._path(data), 2)
        return {name: end[name] - start[name] for name in end}

    def plain_first_step(self, data: Any) -> Params:
        """The same without compiling."""
        shared = _detached(trainable(self.function.model))

        def step(data: Any) -> Params:
            start, end = islice(self.function.path(shared, data), 2)
            return {name: end[name] - start[name] for name in self.steps.names}

        return Vmap().map(step, data) if self.batched else step(data)

    def _path(self, data: Any) -> Iterator[Params]:
        shared = _detached(trainable(self.function.model))
        own = _detached(dict(self.function.adapter.named_parameters()))
        return self.steps.path(shared, own, Batch(*data[0]))


def _detached(params: Any) -> Params:
    return {name: param.detach() for name, param in params.items()}
