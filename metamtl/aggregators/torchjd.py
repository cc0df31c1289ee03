"""TorchJD's aggregators behind metamtl's signature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Aggregator

# Of these TorchJD ships the weights of the rows only; our door makes the combination.
_WEIGHTINGS = {"SDMGrad": "SDMGradWeighting", "MoDo": "MoDoWeighting"}
# Bases of TorchJD, and what is ours under the same name.
_NOT_OFFERED = {"Aggregator", "WeightedAggregator", "GramianWeightedAggregator", "Mean", "NashMTL"}
_SUM = {"ConFIG", "GradDrop", "GradVac", "PCGrad", "Sum"}
_OWN = {"CAGrad", "Constant", "FairGrad"}
# What its methods remember outside of their buffers: for which matrix, and for how many calls.
_MEMORY = ("_state_key", "_n_steps")


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

    `metamtl.aggregators.CAGrad(c=0.5)` is `TorchJD("CAGrad", c=0.5)`. Hyperparameters are those of
    TorchJD's page for it; the losses are not looked at.

    | scale | of |
    |---|---|
    | mean | AlignedMTL, DualProj, ExcessMTL, IMTLG, Krum, MGDA, MoDo, PCD, Random, SDMGrad, |
    | mean | TrimmedMean, UPGrad |
    | sum | ConFIG, GradDrop, GradVac, PCGrad, Sum |
    | own | CAGrad: `1 + c` times the mean; Constant, which is fixed weights: that of its weights |
    | own | FairGrad: for `alpha=1`, its length is `sqrt(T)`, whatever that of the rows |

    Those that draw random numbers (PCGrad's order, GradDrop's mask, ...) draw them from `seed` and the
    number of calls so far, never from the global generator; that number is part of the state dict. So is
    what a method remembers from call to call (GradVac, MoDo, PCD, ...).

    MoDo and SDMGrad are stated for several independent batches a step; here they see one matrix, so their
    papers' guarantees of convergence do not hold.

    Raises:
        ImportError: the method needs a package that TorchJD does not install by itself.
    """

    draws: Tensor

    def __init__(self, name: str, /, *, seed: int = 0, **options: Any) -> None:
        super().__init__()
        from torchjd import aggregation

        if name not in _WEIGHTINGS and not hasattr(aggregation, name):
            raise AttributeError(f"TorchJD has no aggregator {name!r}; it has {', '.join(names())}.")
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
        self.scale = "sum" if name in _SUM else "own" if name in _OWN else "mean"
        self.by_parameter = name == "ExcessMTL"
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))

    def extra_repr(self) -> str:
        return ", ".join(
            [repr(self.name), f"seed={self.seed}", *(f"{k}={v!r}" for k, v in self.options.items())]
        )

    def get_extra_state(self) -> dict[str, dict[str, Any]]:
        return {
            path: {name: vars(module)[name] for name in _MEMORY if name in vars(module)}
            for path, module in self.inner.named_modules()
        }

    def set_extra_state(self, state: dict[str, dict[str, Any]]) -> None:
        for path, memory in state.items():
            vars(self.inner.get_submodule(path)).update(memory)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # TorchJD's buffers are None until the first call too.
        for path, module in self.inner.named_modules(prefix=f"{prefix}inner"):
            for name in dict(module._buffers):
                saved = state_dict.get(f"{path}.{name}")
                setattr(module, name, None if saved is None else torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        follow(self.inner, rows)
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


def follow(module: nn.Module, like: Tensor) -> None:
    """Bring tensors that were given as options (weights, preferences) to the data's dtype and device."""
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(part)[name] = value.to(like)
