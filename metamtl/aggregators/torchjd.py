"""TorchJD's aggregators behind metamtl's signature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Aggregator

# Of these TorchJD ships the weights of the rows only; our door makes the combination.
_WEIGHTINGS = {"SDMGrad": "SDMGradWeighting", "MoDo": "MoDoWeighting"}
# Bases of TorchJD, and what is ours under the same name.
_NOT_OFFERED = {"Aggregator", "WeightedAggregator", "GramianWeightedAggregator", "Mean"}


def names() -> list[str]:
    """TorchJD's aggregators, as `metamtl.aggregators` offers them."""
    from torchjd import aggregation

    offered = [
        name
        for name in aggregation.__all__
        if isinstance(found := getattr(aggregation, name), type)
        and issubclass(found, aggregation.Aggregator)
        and name not in _NOT_OFFERED
    ]
    return sorted(offered + list(_WEIGHTINGS))


class TorchJD(Aggregator):
    """The aggregator `name` of TorchJD, https://torchjd.org, with its own options.

    `metamtl.aggregators.CAGrad(c=0.5)` is `TorchJD("CAGrad", c=0.5)`. Scale and hyperparameters are
    those of TorchJD's page for it; the losses are not looked at.

    Those that draw random numbers (PCGrad's order, GradDrop's mask, ...) draw them from `seed` and the
    number of calls so far, never from the global generator; that number is part of the state dict.

    Raises:
        ImportError: the method needs a package that TorchJD does not install by itself.
    """

    draws: Tensor

    def __init__(self, name: str, /, *, seed: int = 0, **options: Any) -> None:
        super().__init__()
        from torchjd import aggregation

        try:
            if name in _WEIGHTINGS:
                weighting = getattr(aggregation, _WEIGHTINGS[name])(**options)
                self.inner = aggregation.GramianWeightedAggregator(weighting)
            else:
                self.inner = getattr(aggregation, name)(**options)
        except ImportError as error:
            raise ImportError(
                f"aggregators.{name} needs packages that are not installed ({error});"
                " pip install 'torchjd[full]'."
            ) from error
        self.name, self.seed, self.options = name, seed, options
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))

    def extra_repr(self) -> str:
        return ", ".join(
            [repr(self.name), f"seed={self.seed}", *(f"{k}={v!r}" for k, v in self.options.items())]
        )

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        devices = [rows.device] if rows.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            seed = self.seed + int(self.draws)
            torch.default_generator.manual_seed(seed)
            if rows.is_cuda:
                with torch.cuda.device(rows.device):
                    torch.cuda.manual_seed(seed)
            direction = self.inner(rows.detach())
        self.draws += 1
        return direction
