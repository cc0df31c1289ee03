"""A ridge regression on the features: R2D2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..functional import Features
from .feature_classifier import FeatureClassifier


class Ridge(FeatureClassifier):
    """Ridge regression from support features to one-hot labels, in closed form: R2D2.

    Bertinetto, Henriques, Torr, Vedaldi 2019, https://arxiv.org/abs/1805.08136. With support features and a
    column of ones, `X` `[S, F + 1]`, and one-hot labels `Y`, the weights are
    `W = X^T (X X^T + penalty I)^{-1} Y`, a linear system with S unknowns. The scores are
    `scale [f, 1] W + shift`. The penalty (as its logarithm), the scale and the shift are learned: pass
    `recipe.parameters()` to the optimizer.

    Args:
        features, ways: as in `FeatureClassifier`.
        penalty: the initial weight of `|W|^2`.
        scale, shift: their initial values.

    Raises:
        ValueError: `penalty` is not positive.

    >>> from metamtl import Batch, nets
    >>> model = nets.mlp(2, 8, 3)
    >>> support = Batch(torch.randn(6, 2), torch.arange(3).repeat(2))
    >>> ridge = Ridge(ways=3)
    >>> values = ridge(model, support, nn.functional.cross_entropy)
    >>> ridge.predict(model, values, torch.randn(4, 2)).shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        features: Features = "body",
        *,
        ways: int | None = None,
        penalty: float = 1.0,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__(features, ways=ways)
        if not penalty > 0:
            raise ValueError(f"Ridge: penalty={penalty} must be positive.")
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.scale, self.shift = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(shift))

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        x = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        gram = x @ x.T
        identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
        weight = x.T @ torch.linalg.solve(gram + self.log_penalty.exp() * identity, classes)
        scale = self.scale.to(x.dtype)
        return {"weight": scale * weight[:-1], "bias": scale * weight[-1] + self.shift}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        return features @ values["weight"] + values["bias"]
