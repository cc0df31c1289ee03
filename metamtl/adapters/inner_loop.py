"""The computation of an adapter as pure functions of tensors, which engines run step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params
from ..functional.scan import carries, scan

Leftovers = tuple[tuple[nn.Module, str], ...]  # pairs of a module and the name of an attribute
Carry = Any  # the values that the steps change: tensors in any nesting of tuples and dicts


class Start(NamedTuple):
    """The initial values of an inner loop.

    Attributes:
        carry: the values that the steps change.
        features: values, computed from the support set, that the steps only read; the outer gradient is
            propagated through them.
    """

    carry: Carry
    features: Any


class StepContext(NamedTuple):
    """The values that the inner steps of a task read but do not change.

    Attributes:
        params: shared parameters that the steps use but do not adapt.
        adapter_params: the adapter's own parameters.
        features: as in `Start`.
        fixed: values without a gradient: the support set.
    """

    params: Params
    adapter_params: Params
    features: Any
    fixed: Any


class InnerLoop(ABC):
    """`start = init(...)`, K times `carry = step(carry, context, k)`, `params = finish(carry, ...)`.

    An implementation is a frozen dataclass with the constants of one call: adapter, model, loss, names.
    Every value that needs a gradient is an argument.

    Attributes:
        num_steps: K.
        reads: names of the parameters that the steps read but do not adapt.
        starts_from_params: whether `init` only selects from the shared parameters, so that the gradient
            with respect to the first carry is the gradient with respect to the adapted parameters.
    """

    num_steps: int
    reads: tuple[str, ...]
    starts_from_params: bool

    @abstractmethod
    def init(self, params: Params, support: Batch | None, task: Any) -> Start:
        """The values before the first step; `params` holds all parameters by name."""

    @abstractmethod
    def step(self, carry: Carry, context: StepContext, k: Tensor, *, first_order: bool) -> Carry:
        """Step `k` (a zero-dimensional int64 tensor); with `first_order`, its gradient is a constant."""

    @abstractmethod
    def finish(self, carry: Carry, params: Params, k: Tensor) -> Params:
        """All parameters by name, after `k` steps."""

    def first_order(self, k: int) -> bool:
        """Whether the outer gradient treats the gradient of step `k` as a constant."""
        return False

    def adapt(self, params: Params, adapter_params: Params, support: Batch | None, task: Any) -> Params:
        """The parameters after all steps; `adapter_params` holds the adapter's own parameters."""
        return run(self, params, adapter_params, support, task)

    def path(
        self, params: Params, adapter_params: Params, support: Batch | None, task: Any
    ) -> Iterator[Params]:
        """The parameters after 0, 1, ..., K steps."""
        return stages(self, params, adapter_params, support, task)

    def with_leftovers(self, leftovers: Leftovers) -> InnerLoop:
        """The same loop for compiled code; `leftovers` are attributes set by the model's forward pass."""
        return self

    def fixed(self, support: Batch | None) -> Any:
        """The part of the support set that the steps read, without a gradient."""
        return ()

    def context(
        self, start: Start, params: Params, adapter_params: Params, support: Batch | None
    ) -> StepContext:
        """The values that the steps read."""
        unadapted = {name: params[name] for name in self.reads}
        return StepContext(unadapted, adapter_params, start.features, self.fixed(support))

    def unused(self, params: Params, support: Batch | None, task: Any) -> list[str]:
        """Adapted parameters that the support loss does not use. The rule must not decay them."""
        return []


def run(
    loop: InnerLoop,
    params: Params,
    adapter_params: Params,
    support: Any,
    task: Any,
    every: int | None = None,
) -> Params:
    """The parameters after all steps; `every` is `checkpoint_every` of `functional.scan`."""
    start, device = loop.init(params, support, task), device_of(params)
    context, step = loop.context(start, params, adapter_params, support), _numbered(loop, device)
    carry = scan(step, start.carry, context, range(loop.num_steps), checkpoint_every=every)
    return loop.finish(carry, params, step_number(loop.num_steps, device))


def stages(
    loop: InnerLoop, params: Params, adapter_params: Params, support: Any, task: Any
) -> Iterator[Params]:
    """The parameters after 0, 1, ..., K steps."""
    start, device = loop.init(params, support, task), device_of(params)
    context, step = loop.context(start, params, adapter_params, support), _numbered(loop, device)
    yield loop.finish(start.carry, params, step_number(0, device))
    for k, carry in enumerate(carries(step, start.carry, context, range(loop.num_steps)), 1):
        yield loop.finish(carry, params, step_number(k, device))


def _numbered(loop: InnerLoop, device: torch.device | None) -> Callable[[Carry, StepContext, int], Carry]:
    """`step(carry, context, k)` with an int `k`."""

    def step(carry: Carry, context: StepContext, k: int) -> Carry:
        # Create the tensor here: a Function must not read a tensor of an outer torch.func level.
        return loop.step(carry, context, step_number(k, device), first_order=loop.first_order(k))

    return step


def step_number(k: int, device: torch.device | None) -> Tensor:
    """`k` as a zero-dimensional tensor on the device, without a synchronization."""
    return torch.full((), k, dtype=torch.int64, device=device)


def device_of(params: Params) -> torch.device | None:
    """The device of the parameters; None if there are none."""
    return next((param.device for param in params.values()), None)
