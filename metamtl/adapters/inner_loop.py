"""An adapter's computation as pure functions of tensors, which engines run step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params
from ..functional.scan import carries, scan

Leftovers = tuple[tuple[nn.Module, str], ...]  # modules, and names of attributes
Carry = Any  # what the steps change: tensors in any nesting of tuples and dicts


class Start(NamedTuple):
    """What an inner loop begins with.

    Attributes:
        carry: what the steps change.
        features: what they only read and the outer gradient goes through, computed from the support set.
    """

    carry: Carry
    features: Any


class StepContext(NamedTuple):
    """What the inner steps of a task only read.

    Attributes:
        params: shared parameters that the steps use and do not adapt.
        learned: the adapter's own parameters.
        features: as in `Start`.
        fixed: what has no gradient: the support set.
    """

    params: Params
    learned: Params
    features: Any
    fixed: Any


class InnerLoop(ABC):
    """`start = init(...)`, K times `carry = step(carry, context, k)`, `params = finish(carry, ...)`.

    An implementation is a frozen dataclass of what is fixed for one call: adapter, model, loss, names.
    Whatever needs a gradient is an argument.

    Attributes:
        num_steps: K.
        reads: names of the parameters that steps read and do not adapt.
        starts_from_params: whether `init` only selects from the shared parameters, so that the gradient of
            the first carry is that of the adapted parameters.
    """

    num_steps: int
    reads: tuple[str, ...]
    starts_from_params: bool

    @abstractmethod
    def init(self, params: Params, support: Batch | None, task: Any) -> Start:
        """The state before the first step; `params` has every parameter by name."""

    @abstractmethod
    def step(self, carry: Carry, context: StepContext, k: Tensor, *, first_order: bool) -> Carry:
        """Step `k`, an int64 tensor without axes; `first_order` takes its gradient as a constant."""

    @abstractmethod
    def finish(self, carry: Carry, params: Params, k: Tensor) -> Params:
        """Every parameter by name, after `k` steps."""

    def first_order(self, k: int) -> bool:
        """Whether the outer gradient takes the gradient of step `k` as a constant."""
        return False

    def adapt(self, params: Params, learned: Params, support: Batch | None, task: Any) -> Params:
        """The parameters after all steps; `learned` are the adapter's own parameters."""
        return run(self, params, learned, support, task)

    def path(self, params: Params, learned: Params, support: Batch | None, task: Any) -> Iterator[Params]:
        """The parameters after 0, 1, ..., K steps."""
        return stages(self, params, learned, support, task)

    def with_leftovers(self, leftovers: Leftovers) -> InnerLoop:
        """The same loop for compiled code, given the attributes that the model's forward pass sets."""
        return self

    def fixed(self, support: Batch | None) -> Any:
        """What the steps read of the support set, without a gradient."""
        return ()

    def context(self, start: Start, params: Params, learned: Params, support: Batch | None) -> StepContext:
        """What the steps read."""
        read = {name: params[name] for name in self.reads}
        return StepContext(read, learned, start.features, self.fixed(support))

    def unused(self, params: Params, support: Batch | None, task: Any) -> list[str]:
        """Adapted parameters that the support loss does not use; the rule must not decay them."""
        return []


def run(
    loop: InnerLoop, params: Params, learned: Params, support: Any, task: Any, every: int | None = None
) -> Params:
    """The parameters after all steps; `every` is `checkpoint_every` of `functional.scan`."""
    start, device = loop.init(params, support, task), device_of(params)
    context, step = loop.context(start, params, learned, support), _numbered(loop, device)
    carry = scan(step, start.carry, context, range(loop.num_steps), checkpoint_every=every)
    return loop.finish(carry, params, step_number(loop.num_steps, device))


def stages(loop: InnerLoop, params: Params, learned: Params, support: Any, task: Any) -> Iterator[Params]:
    """The parameters after 0, 1, ..., K steps."""
    start, device = loop.init(params, support, task), device_of(params)
    context, step = loop.context(start, params, learned, support), _numbered(loop, device)
    yield loop.finish(start.carry, params, step_number(0, device))
    for k, carry in enumerate(carries(step, start.carry, context, range(loop.num_steps)), 1):
        yield loop.finish(carry, params, step_number(k, device))


def _numbered(loop: InnerLoop, device: torch.device | None) -> Callable[[Carry, StepContext, int], Carry]:
    """`step(carry, context, k)` with `k` as a number."""

    def step(carry: Carry, context: StepContext, k: int) -> Carry:
        # Made here: a tensor of an outer level of torch.func must not be read inside a Function.
        return loop.step(carry, context, step_number(k, device), first_order=loop.first_order(k))

    return step


def step_number(k: int, device: torch.device | None) -> Tensor:
    """`k` as a tensor without axes on the device, without waiting for it."""
    return torch.full((), k, dtype=torch.int64, device=device)


def device_of(params: Params) -> torch.device | None:
    return next((param.device for param in params.values()), None)
