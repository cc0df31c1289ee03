"""Gradients by evolution strategies, without a gradient through the inner loop: ES-MAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..functional.counter_random import normal
from .base import Adaptation, Reads


@dataclass(frozen=True)
class EvolutionStrategy:
    """A function whose gradient is an estimate by evolution strategies: ES-MAML.

    Song et al. 2020, https://arxiv.org/abs/1910.01215. With `J(theta) = L_query(adapt(theta))` and noise
    `e_i ~ N(0, I)`, the gradient is
    `1 / (2 n sigma) sum_i (J(theta + sigma e_i) - J(theta - sigma e_i)) e_i` (antithetic). Nothing is
    propagated through the adaptation, which may be any adapter; parameters of the adapter receive no
    gradient. All tasks of a call have the same noise.

    Args:
        samples: n, the number of pairs; each costs two adaptations.
        sigma: the standard deviation of the noise.
        key: the integers that determine the noise. It must differ between outer steps, which
            `recipes.es_maml` takes care of with `Recipe.at`.

    Raises:
        ValueError: `samples` or `sigma` is not positive.
    """

    reads: ClassVar[Reads] = "adapter"

    samples: int = 8
    sigma: float = 0.1
    key: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.sigma > 0:
            raise ValueError(f"samples={self.samples} and sigma={self.sigma} must be positive.")

    def with_key(self, *key: int) -> EvolutionStrategy:
        """The same objective with other noise."""
        return replace(self, key=key)

    def __call__(self, task: Adaptation) -> Tensor:
        assert task.adapt is not None
        total = []
        with torch.no_grad():
            theta = {name: param.detach() for name, param in task.start.items()}
            estimates = {name: torch.zeros_like(param) for name, param in theta.items()}
            for sample in range(self.samples):
                noise = {
                    name: normal((*self.key, sample, i), p.shape, device=p.device).to(p.dtype)
                    for i, (name, p) in enumerate(theta.items())
                }
                up, down = (
                    task.measure(
                        task.adapt({n: p + sign * self.sigma * noise[n] for n, p in theta.items()}),
                        task.query,
                    )
                    for sign in (1, -1)
                )
                slope = (up - down) / (2 * self.samples * self.sigma)
                estimates = {name: g + slope * noise[name] for name, g in estimates.items()}
        for name, param in task.start.items():
            total.append((param * estimates[name]).sum())
        return torch.stack(total).sum()
