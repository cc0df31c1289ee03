"""One adapter after another: Proto-MAML is class means, then gradient steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params
from ..task import Loss
from .base import Adapter


class Chain(Adapter):
    """Each adapter starts from the parameters that the one before it returned.

    `Chain(Prototype(), Gradient(5, lr=0.1))` is Proto-MAML, Triantafillou et al. 2020,
    https://arxiv.org/abs/1903.03096.
    """

    def __init__(self, *adapters: Adapter) -> None:
        super().__init__()
        if not adapters:
            raise ValueError("Chain needs at least one adapter; for none, use Shared().")
        self.adapters = nn.ModuleList(adapters)

    @property
    def gradient_evaluations(self) -> int:
        return sum(adapter.gradient_evaluations for adapter in self.adapters)  # type: ignore[misc]

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
        *_, last = self.path(model, support, loss, params=params, task=task)
        return last

    def path(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Iterator[Params]:
        """The stages of the last adapter, from where the others have brought the parameters."""
        *before, last = self.adapters
        for adapter in before:
            params = adapter(model, support, loss, params=params, task=task)
        yield from last.path(model, support, loss, params=params, task=task)  # type: ignore[operator]
