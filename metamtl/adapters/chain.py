"""Composition of adapters, such as class means followed by gradient steps (Proto-MAML)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params
from ..losses import Loss
from .base import Adapter
from .inner_loop import Carry, InnerLoop, Leftovers, Start, StepContext


class Chain(Adapter):
    """Apply adapters in sequence. Each adapter starts from the parameters that the previous one returned.

    `Chain(Prototype(), Gradient(5, lr=0.1))` is Proto-MAML, Triantafillou et al. 2020,
    https://arxiv.org/abs/1903.03096.
    """

    def __init__(self, *adapters: Adapter) -> None:
        super().__init__()
        if not adapters:
            raise ValueError("Chain needs at least one adapter; to adapt nothing, use Shared().")
        for adapter in adapters:
            if not isinstance(adapter, Adapter):
                raise TypeError(
                    f"Chain takes adapters, not {adapter!r}; for example Chain(Prototype(), Gradient(5))."
                )
        for adapter in adapters[:-1]:
            if type(adapter).predict is not Adapter.predict and not isinstance(adapter, Chain):
                raise ValueError(
                    f"Chain: {type(adapter).__name__} computes predictions in its own way, which the later"
                    f" {type(adapters[-1]).__name__} would not use; put it last."
                )
        self.adapters = nn.ModuleList(adapters)

    @property
    def transductive(self) -> bool:
        return any(adapter.transductive for adapter in self.adapters)  # type: ignore[misc]

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        for adapter in self.adapters:
            adapter.check(model, task)  # type: ignore[operator]

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        *previous, last = self.adapters
        for adapter in previous:
            params = adapter(model, support, loss, params=params, task=task)
        return last(model, support, loss, params=params, task=task)  # type: ignore[no-any-return]

    def predict(self, model: nn.Module, params: Params, x: Any, task: Any = None, **call: Any) -> Any:
        return self.adapters[-1].predict(model, params, x, task, **call)  # type: ignore[operator]

    def path(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Iterator[Params]:
        """The stages of the last adapter, which starts from the result of the others."""
        *previous, last = self.adapters
        for adapter in previous:
            params = adapter(model, support, loss, params=params, task=task)
        yield from last.path(model, support, loss, params=params, task=task)  # type: ignore[operator]

    def inner_loop(self, model: nn.Module, loss: Loss, name: str | None = None) -> InnerLoop:
        if type(self).forward is not Chain.forward:
            return super().inner_loop(model, loss, name)
        last = self.adapters[-1].inner_loop(model, loss, name)  # type: ignore[operator]
        return _ChainLoop(self, model, loss, name, last, last.num_steps)


@dataclass(frozen=True)
class _ChainLoop(InnerLoop):
    """The steps of the last adapter. The carry also holds the parameters that the others returned."""

    adapter: Chain
    model: nn.Module
    loss: Loss
    name: str | None
    last: InnerLoop
    num_steps: int
    reads: tuple[str, ...] = ()
    starts_from_params: bool = False

    def init(self, params: Params, support: Batch | None, task: Any) -> Start:
        params = self._before(params, support, task)
        start = self.last.init(params, support, task)
        return Start((start.carry, params), start.features)

    def adapt(self, params: Params, adapter_params: Params, support: Batch | None, task: Any) -> Params:
        params = self._before(params, support, task)
        return self.last.adapt(params, self._of_last(adapter_params), support, task)

    def path(
        self, params: Params, adapter_params: Params, support: Batch | None, task: Any
    ) -> Iterator[Params]:
        params = self._before(params, support, task)
        return self.last.path(params, self._of_last(adapter_params), support, task)

    def _before(self, params: Params, support: Batch | None, task: Any) -> Params:
        """The parameters that the adapters before the last one return."""
        task_key = task if self.name is None else self.name
        for adapter in list(self.adapter.adapters)[:-1]:
            params = adapter(self.model, support, self.loss, params=params, task=task_key)
        return params

    def _of_last(self, adapter_params: Params) -> Params:
        """The parameters of the last adapter, by their names within it."""
        prefix = f"adapters.{len(self.adapter.adapters) - 1}."
        return {n.removeprefix(prefix): p for n, p in adapter_params.items() if n.startswith(prefix)}

    def with_leftovers(self, leftovers: Leftovers) -> _ChainLoop:
        return replace(self, last=self.last.with_leftovers(leftovers))

    def fixed(self, support: Batch | None) -> Any:
        return self.last.fixed(support)

    def unused(self, params: Params, support: Batch | None, task: Any) -> list[str]:
        return self.last.unused(params, support, task)

    def step(self, carry: Carry, context: StepContext, k: Tensor, *, first_order: bool) -> Carry:
        inner, params = carry
        adapter_params = self._of_last(context.adapter_params)
        context = StepContext(
            {name: params[name] for name in self.last.reads},
            adapter_params,
            context.features,
            context.fixed,
        )
        return self.last.step(inner, context, k, first_order=first_order), params

    def finish(self, carry: Carry, params: Params, k: Tensor) -> Params:
        return self.last.finish(carry[0], carry[1], k)

    def first_order(self, k: int) -> bool:
        return self.last.first_order(k)
