"""Is a gradient in low precision a gradient, or noise?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engines import Engine, Loop
from ..recipes import Recipe
from .arguments import Episodes, Losses, check_analysis
from .gradients import gradients
from .result import Result, bars

NOISE = 0.9  # below this cosine with the exact gradient, a warning is given


@dataclass(frozen=True)
class Numerics(Result):
    """One meta-gradient in several precisions, compared with float64.

    Attributes:
        cosines: with the gradient in float64, by precision; NaN where it could not be computed.
        errors: `|g - g64| / |g64|`.
        failures: why a gradient could not be computed, or is not finite.
    """

    cosines: dict[str, float]
    errors: dict[str, float]
    failures: dict[str, str]

    @property
    def noise(self) -> tuple[str, ...]:
        """The precisions whose gradient has a cosine below 0.9, or is not finite."""
        return tuple(name for name, cosine in self.cosines.items() if not cosine >= NOISE)

    def scalars(self) -> dict[str, float]:
        return {f"cosine/{name}": value for name, value in self.cosines.items()}

    def plot(self, ax: Any = None) -> Any:
        values = [0.0 if math.isnan(value) else value for value in self.cosines.values()]
        return bars(ax, tuple(self.cosines), values, "cosine with the gradient in float64")


def check_numerics(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    *,
    precisions: Iterable[str] = ("float32", "bfloat16", "float16", "bfloat16 autocast", "float16 autocast"),
    engine: Engine | None = None,
) -> Numerics:
    """Compute the mean (meta-)gradient in several precisions, and compare it with float64.

    "float32", "bfloat16" and "float16": parameters, data and computation in this type. "bfloat16
    autocast" and "float16 autocast": parameters in float32, and `torch.autocast`; without a scaled loss, so
    that small gradients in float16 become zero. The model, the recipe and the episodes are copied.

    Args:
        model, recipe, episodes, loss: as in `gradients`.
        precisions: some of those above.
        engine: as in `gradients`; if None, `Loop()`.

    Raises:
        TypeError, ValueError: as `gradients`; a precision is unknown; the gradient in float64 is zero.

    Warns:
        UserWarning: a gradient has a cosine below 0.9 with that in float64, or is not finite.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(4, torch.Generator().manual_seed(0))
    >>> numerics = check_numerics(model, recipes.maml(), episodes, family.loss, precisions=["float32"])
    >>> numerics.cosines["float32"] > 0.999
    True
    """
    episodes = check_analysis(model, recipe, episodes, loss, engine)
    engine = Loop() if engine is None else engine
    names = (precisions,) if isinstance(precisions, str) else tuple(precisions)
    if unknown := [name for name in names if name not in _PRECISIONS]:
        raise ValueError(f"precisions={list(names)}: {unknown[0]!r} is not one of {list(_PRECISIONS)}.")
    reference = _mean_gradient(model, recipe, episodes, loss, torch.float64, None, engine)
    length = float(reference.norm())
    if length == 0:
        raise ValueError("the gradient in float64 is zero, so nothing can be compared with it.")
    cosines, errors, failures = dict[str, float](), dict[str, float](), dict[str, str]()
    for name in names:
        dtype, autocast = _PRECISIONS[name]
        try:
            gradient = _mean_gradient(model, recipe, episodes, loss, dtype, autocast, engine)
        except (RuntimeError, FloatingPointError) as error:  # no kernel for this type, or an overflow
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            cosines[name] = errors[name] = math.nan
            continue
        norm = float(gradient.norm())
        cosines[name] = float(gradient @ reference) / (norm * length) if norm else 0.0
        errors[name] = float((gradient - reference).norm()) / length
    result = Numerics(cosines, errors, failures)
    if result.noise:
        values = ", ".join(f"{name}: {failures.get(name, f'{cosines[name]:.3f}')}" for name in result.noise)
        warnings.warn(
            f"the gradient is noise in some precisions (cosine with float64 below {NOISE}): {values}. Use a"
            " higher precision for the inner loop or for layers with large values, or scale the loss.",
            stacklevel=2,
        )
    return result


_PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "bfloat16 autocast": (torch.float32, torch.bfloat16),
    "float16 autocast": (torch.float32, torch.float16),
}


def _mean_gradient(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    engine: Engine,
) -> Tensor:
    """The mean gradient `[n]` of copies in `dtype`, in double precision on the CPU."""
    model, recipe, loss = deepcopy(model).to(dtype), deepcopy(recipe).to(dtype), _converted(loss, dtype)

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    if isinstance(episodes, Mapping):
        shared: dict[int, Tensor] = {}  # tasks that share an input still share it
        episodes = {
            name: episode.map(lambda t: shared.setdefault(id(t), convert(t)))
            for name, episode in episodes.items()
        }
    else:
        episodes = episodes.map(convert)
    device = next(model.parameters()).device.type
    context: AbstractContextManager[Any] = (
        nullcontext() if autocast is None else torch.autocast(device, autocast)
    )
    with context:
        grads = gradients(model, recipe, episodes, loss, engine=engine)
    return grads.matrix().double().mean(0).cpu()


def _converted(loss: Any, dtype: torch.dtype) -> Any:
    """A loss, or a dict of losses; modules, which may have buffers, are copied."""
    if isinstance(loss, Mapping):
        return {name: _converted(one, dtype) for name, one in loss.items()}
    return deepcopy(loss).to(dtype) if isinstance(loss, nn.Module) else loss
