"""TorchJD's scalarizers: weights that depend only on the losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import LossWeighting, check_positive
from .torchjd import expect_vectors, follow

# Scalarizers that need only the losses of one call. DWA and FAMO are implemented in other files; Mean, Sum,
# Constant and Random are also aggregators of TorchJD.
_OFFERED = ["COSMOS", "GeometricMean", "IMTLL", "PBI", "STCH", "UW"]


def names() -> list[str]:
    """The names of TorchJD's scalarizers in `metamtl.aggregators`."""
    return list(_OFFERED)


def wrapped_class(name: str) -> type:
    """The class of TorchJD that `metamtl.aggregators.<name>` wraps."""
    from torchjd import scalarization

    return getattr(scalarization, name)


class Scalarized(LossWeighting):
    """The gradient of a scalar function of the losses, the scalarizer `name` of TorchJD, https://torchjd.org.

    `metamtl.aggregators.UW(3)` is `Scalarized("UW", 3)`, and `Scalarized(scalarizer)` wraps a scalarizer of
    TorchJD. The direction for `s(L_1 ... L_T)` is `sum_t ds/dL_t g_t`, and every parameter receives the
    gradient that `scalarizer(losses).backward()` computes.

    | name | scalar function | scale |
    |---|---|---|
    | `UW(T)` | `sum 1/2 exp(-s_t) L_t + s_t/2` | own: initially half the sum |
    | `IMTLL(T)` | `sum exp(s_t) L_t - s_t` | initially sum |
    | `GeometricMean()` | `(prod L_t)^(1/T)`, of positive losses | mean, if losses are equal |
    | `STCH(mu)` | `mu log sum exp(w_t L_t / mu)`, `w_t = 1/T` | own: the weights sum to `1/T` |
    | `COSMOS(lambda_, weights)` | `sum w_t L_t - lambda cos(w, L)` | own: that of the weights |
    | `PBI(theta, weights)` | `d_1 + theta d_2`, along and perpendicular to the weights | own: norm 1 |

    UW: uncertainty weighting, Kendall et al. 2018, https://arxiv.org/abs/1705.07115. IMTLL: IMTL-L, Liu et
    al. 2021, https://openreview.net/forum?id=IMPnRXEWpvr. GeometricMean: GLS, Chennupati et al. 2019,
    https://arxiv.org/abs/1904.08492. STCH: Lin et al. 2024, https://arxiv.org/abs/2402.19078. COSMOS:
    Ruchte and Grabocka 2021, https://arxiv.org/abs/2103.13392. PBI: Zhang and Li 2007.

    The `s_t` of UW and IMTLL are parameters of the aggregator: a call adds their gradient to their `.grad`,
    as `meta_backward` does for the parameters of the model. They stay constant unless they are passed to an
    optimizer: `torch.optim.Adam([*model.parameters(), *recipe.parameters()])`.

    Raises:
        ValueError: a loss is zero or negative, for GeometricMean.

    >>> halves = Scalarized("UW", 2)
    >>> halves(torch.tensor([1.0, 3.0]), torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    tensor([1., 2.])
    >>> halves.inner.log_var.grad
    tensor([ 0., -1.])
    """

    def __init__(self, name: str | nn.Module, /, *args: Any, **options: Any) -> None:
        super().__init__()
        from torchjd import scalarization

        if not isinstance(name, str):
            if args or options or not isinstance(name, scalarization.Scalarizer):
                raise TypeError(
                    f"Scalarized takes a scalarizer of TorchJD, or its name and options, not {name!r}."
                )
            self.inner, name = name, type(name).__name__
            if name not in _OFFERED and hasattr(scalarization, name):
                raise ValueError(
                    f"the scalarizer {self.inner} draws random numbers, has state, or is also an"
                    f" aggregator; pass metamtl.aggregators.{name}(...) instead."
                )
        elif name not in _OFFERED:
            raise AttributeError(f"no scalarizer {name!r} is offered; there are {', '.join(_OFFERED)}.")
        else:
            self.inner = wrapped_class(name)(*args, **options)
        self.name = name
        self.scale = {"GeometricMean": "mean", "IMTLL": "sum"}.get(name, "own")
        for parameter in self.inner.parameters():
            self.expect(parameter.numel())
        expect_vectors(self, self.inner)

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        if self.name == "GeometricMean":
            check_positive(self.name, losses)
        follow(self.inner, losses)
        return slopes(self.inner, losses)


def slopes(scalarizer: nn.Module, losses: Tensor) -> Tensor:
    """`ds/dL_t` of a scalarizer, `[T]`; also add the gradients of its parameters to their `.grad`."""
    losses = losses.detach().requires_grad_()
    params = list(scalarizer.parameters())
    with torch.enable_grad():
        result = torch.autograd.grad(scalarizer(losses), [losses, *params], allow_unused=True)
    for param, gradient in zip(params, result[1:]):
        if gradient is not None:
            param.grad = gradient if param.grad is None else param.grad + gradient
    return result[0]
