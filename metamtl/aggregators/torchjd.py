"""TorchJD's aggregators with the signature of metamtl's aggregators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.random_state import seeded
from .base import Aggregator, weighted

# TorchJD has only weightings for these; TorchJD's base class combines the gradients with the weights.
_WEIGHTINGS = {"SDMGrad": "SDMGradWeighting", "MoDo": "MoDoWeighting"}
# Base classes of TorchJD, and methods that metamtl implements under the same name.
_NOT_OFFERED = {"Aggregator", "WeightedAggregator", "GramianWeightedAggregator", "Mean", "NashMTL"}
_WEIGHTS_LOSSES = {"Constant", "Mean", "Random", "Sum"}
_SUM = {"ConFIG", "GradDrop", "GradVac", "PCGrad", "Sum"}
_OWN = {"CAGrad", "Constant", "FairGrad"}
_COLUMNS = {"TrimmedMean"}
DRAWS = {"GradDrop", "GradVac", "PCGrad", "Random"}
# State that is not in buffers: a key of the matrix it belongs to, and the number of calls.
_MEMORY = ("_state_key", "_n_steps")
# Options with one entry per task.
_VECTORS = ("weights", "pref_vector", "_pref_vector", "leak", "reference")


def names() -> list[str]:
    """The names of TorchJD's aggregators in `metamtl.aggregators`."""
    from torchjd import aggregation

    methods = [
        name
        for name in aggregation.__all__
        if isinstance(value := getattr(aggregation, name), type)
        and issubclass(value, aggregation.Aggregator)
        and name not in _NOT_OFFERED
    ]
    return sorted(methods + list(_WEIGHTINGS))


def wrapped_class(name: str) -> type:
    """The class of TorchJD that `metamtl.aggregators.<name>` wraps."""
    from torchjd import aggregation

    return getattr(aggregation, _WEIGHTINGS.get(name, name))


class TorchJD(Aggregator):
    """The aggregator `name` of TorchJD, https://torchjd.org, with its own options.

    `metamtl.aggregators.CAGrad(c=0.5)` is `TorchJD("CAGrad", c=0.5)`, and `TorchJD(aggregator)` wraps an
    aggregator of TorchJD. TorchJD's documentation describes the options. The values of the losses are not
    used. `Constant`, `Random` and `Sum` weight losses, the others combine gradients.

    | scale | aggregators |
    |---|---|
    | mean | AlignedMTL, DualProj, ExcessMTL, IMTLG, Krum, MGDA, MoDo, PCD, Random, SDMGrad, |
    | mean | TrimmedMean, UPGrad |
    | sum | ConFIG, GradDrop, GradVac, PCGrad, Sum |
    | own | CAGrad: `1 + c` times the mean; Constant (fixed weights): that of its weights |
    | own | FairGrad: for `alpha=1` its norm is `sqrt(T)`, for any gradients |

    Random numbers (PCGrad's order, GradDrop's mask, ...) depend only on `seed` and the number of calls so
    far, never on the global generator. The state dict contains this number and the state of the method
    (GradVac, MoDo, PCD, ...).

    MoDo and SDMGrad are defined for several independent batches per step. Here they use one matrix, so the
    convergence guarantees of their papers do not hold.

    Raises:
        ImportError: the method needs a package that is not installed.
    """

    draws: Tensor

    def __init__(self, name: str | nn.Module, /, *, seed: int = 0, **options: Any) -> None:
        super().__init__()
        from torchjd import aggregation

        if isinstance(name, str):
            if name not in _WEIGHTINGS and not hasattr(aggregation, name):
                raise AttributeError(f"TorchJD has no aggregator {name!r}; it has {', '.join(names())}.")
            try:
                inner = wrapped_class(name)(**options)
            except ImportError as error:
                raise missing_package(name, error) from error
            self.inner = aggregation.GramianWeightedAggregator(inner) if name in _WEIGHTINGS else inner
        elif isinstance(name, aggregation.Aggregator):
            if options:
                raise TypeError(
                    f"options {list(options)} belong to the constructor of {name}, not to TorchJD."
                )
            self.inner, name = name, type(name).__name__
        else:
            raise TypeError(
                f"{name!r} is neither the name of an aggregator of TorchJD nor such an aggregator."
            )
        self.name, self.seed, self.options = name, seed, options
        cls = wrapped_class(name) if hasattr(aggregation, _WEIGHTINGS.get(name, name)) else None
        if name not in _WEIGHTINGS and type(self.inner) is not cls:
            self.scale = "own"  # a user-defined class
        else:
            self.scale = "sum" if name in _SUM else "own" if name in _OWN else "mean"
            if name in _WEIGHTS_LOSSES:
                self.reads = "losses"
            elif isinstance(self.inner, aggregation.GramianWeightedAggregator):
                self.reads = "gramian"
            elif name in _COLUMNS:
                self.reads = "columns"
        self.by_parameter = name == "ExcessMTL"
        self.per_task = any(hasattr(module, "reset") for module in self.inner.modules())
        expect_vectors(self, self.inner)
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))

    def extra_repr(self) -> str:
        return ", ".join([f"seed={self.seed}", *(f"{k}={v!r}" for k, v in self.options.items())])

    def get_extra_state(self) -> dict[str, Any]:
        inner = {
            path: {name: vars(module)[name] for name in _MEMORY if name in vars(module)}
            for path, module in self.inner.named_modules()
        }
        return {**super().get_extra_state(), "inner": inner}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        for path, memory in state["inner"].items():
            vars(self.inner.get_submodule(path)).update(memory)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # TorchJD's buffers are also None until the first call.
        for path, module in self.inner.named_modules(prefix=f"{prefix}inner"):
            for name in dict(module._buffers):
                state = state_dict.get(f"{path}.{name}")
                setattr(module, name, None if state is None else torch.empty_like(state))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor | None:
        if self.reads != "losses":
            return None
        # Such weights depend only on the number of tasks, dtype and device of the matrix.
        matrix = losses.detach()[:, None] if gradients is None else gradients
        return self._seeded(self.inner.weighting, matrix)

    def forward(self, losses: Tensor, gradients: Tensor) -> Tensor:
        weights = self.weights(losses, gradients)
        return self._seeded(self.inner, gradients) if weights is None else weighted(weights, gradients)

    def _seeded(self, function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
        """`function(matrix)` with the seed of this call."""
        follow(self.inner, matrix)
        with seeded(self.seed + int(self.draws), matrix.device if matrix.is_cuda else None):
            result = function(matrix.detach())
        self.draws = self.draws + 1
        return result


def expect_vectors(aggregator: Aggregator, inner: nn.Module) -> None:
    """Set the number of tasks of `aggregator` if an option of `inner` has one entry per task."""
    for part in inner.modules():
        for name in _VECTORS:
            vector = vars(part).get(name)
            if isinstance(vector, Tensor) and vector.dim() == 1:
                aggregator.expect(len(vector))


def missing_package(name: str, error: ImportError) -> ImportError:
    """The error for an aggregator whose packages are not installed."""
    return ImportError(
        f"aggregators.{name} needs packages that are not installed ({error});"
        " pip install 'metamtl[aggregators]'."
    )


def follow(module: nn.Module, like: Tensor) -> None:
    """Convert option tensors (weights, preferences) of `module` to the dtype and device of `like`."""
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(part)[name] = value.to(like)
