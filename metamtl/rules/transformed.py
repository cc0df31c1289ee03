"""Base class of rules that change the gradients and pass them to another rule."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from ..functional import Params
from .base import OptState, Rates, Rule


class TransformedGradients(Rule):
    """A rule applied to transformed gradients; a subclass defines `transform`."""

    rule: Rule

    @property
    def decays(self) -> bool:
        return self.rule.decays

    def init(self, params: Params) -> OptState:
        return self.rule.init(params)

    def update(
        self, params: Params, gradients: Params, opt_state: OptState, lr: Rates, k: Tensor
    ) -> tuple[Params, OptState]:
        return self.rule.update(params, self.transform(params, gradients, k), opt_state, lr, k)

    @abstractmethod
    def transform(self, params: Params, gradients: Params, k: Tensor) -> Params:
        """The gradients that the rule receives at step `k`, by name."""
