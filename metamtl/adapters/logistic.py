"""A converged logistic regression on the features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..functional import Features
from ..functional.newton import implicit_step, minimize
from .feature_classifier import FeatureClassifier, unit


class Logistic(FeatureClassifier):
    """Multinomial logistic regression on the support features, trained to convergence.

    Bertinetto et al. 2019 (LR-D2), https://arxiv.org/abs/1805.08136; Lee et al. 2019 (differentiable convex
    heads), https://arxiv.org/abs/1904.03758. `W` and `b` minimize
    `mean cross-entropy(f W + b, y) + penalty / 2 |W|^2`. scikit-learn's `C` is `1 / (S penalty)`. The
    solution is `W = X^T a`, found by damped Newton steps on `a` `[S, N]` and `b`. The outer gradient is
    that of the exact minimum (implicit differentiation); it is differentiable once. The penalty is learned
    through its logarithm.

    Differs from LR-D2 in: 1. any number of classes; 2. the number of Newton steps does not affect the
    gradient.

    Args:
        features, ways: as in `FeatureClassifier`.
        penalty: the initial weight of `|W|^2`.
        learn_penalty: whether the penalty is a parameter of the adapter.
        normalize: whether features are divided by their length.
        steps: number of Newton steps; 15 reach double precision for usual penalties.

    Raises:
        ValueError: `penalty` or `steps` is not positive.

    >>> [name for name, _ in Logistic(ways=5, penalty=0.1).named_parameters()]
    ['log_penalty']
    """

    def __init__(
        self,
        features: Features = "body",
        *,
        ways: int | None = None,
        penalty: float = 0.1,
        learn_penalty: bool = True,
        normalize: bool = False,
        steps: int = 15,
    ) -> None:
        super().__init__(features, ways=ways)
        if not penalty > 0 or steps < 1:
            raise ValueError(f"Logistic: penalty={penalty} and steps={steps} must be positive.")
        log_penalty = torch.tensor(math.log(penalty))
        if learn_penalty:
            self.log_penalty: Tensor = nn.Parameter(log_penalty)
        else:
            self.register_buffer("log_penalty", log_penalty)
        self.normalize, self.steps = normalize, steps

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        features = unit(features) if self.normalize else features
        size, ways = classes.shape
        penalty = self.log_penalty.to(features.dtype).exp()

        def residual_of(gram: Tensor, penalty: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            """`(p - y) / S + penalty a`, the sums of `(p - y) / S` over examples, and the Jacobian."""
            a, b = x[: size * ways].view(size, ways), x[size * ways :]
            p = torch.softmax(gram @ a + b, 1)
            error = (p - classes) / size
            # Adding a constant to `b` changes nothing; the mean of `b` makes the solution unique.
            value = torch.cat([(error + penalty * a).flatten(), error.sum(0) + b.mean()])
            slope = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / size  # [S, N, N]
            by_a = torch.einsum("snm,st->sntm", slope, gram).reshape(size * ways, size * ways)
            by_a = by_a + penalty * torch.eye(size * ways, dtype=x.dtype, device=x.device)
            sums = torch.einsum("snm,st->ntm", slope, gram).reshape(ways, size * ways)
            upper = torch.cat([by_a, slope.reshape(size * ways, ways)], 1)
            lower = torch.cat([sums, slope.sum(0) + 1 / ways], 1)
            return value, torch.cat([upper, lower])

        def objective_of(gram: Tensor, penalty: Tensor, x: Tensor) -> Tensor:
            a, b = x[:, : size * ways].unflatten(1, (size, ways)), x[:, size * ways :]
            scores = torch.log_softmax(gram @ a + b[:, None], 2)
            weights = 0.5 * penalty * (a * (gram @ a)).sum((1, 2)) + 0.5 * b.mean(1).square() * ways
            return weights - (classes * scores).sum((1, 2)) / size

        gram = features @ features.T
        constant, constant_penalty = gram.detach(), penalty.detach()
        start = torch.zeros(size * ways + ways, dtype=gram.dtype, device=gram.device)
        solution = minimize(
            lambda x: residual_of(constant, constant_penalty, x),
            lambda x: objective_of(constant, constant_penalty, x),
            start,
            self.steps,
        )
        x = implicit_step(lambda x: residual_of(gram, penalty, x), solution)
        return {"weight": features.T @ x[: size * ways].view(size, ways), "bias": x[size * ways :]}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        features = unit(features) if self.normalize else features
        return features @ values["weight"] + values["bias"]
