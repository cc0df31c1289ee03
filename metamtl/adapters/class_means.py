"""Distances to class means, with the features of any model: ProtoNet."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..functional import Features
from .feature_classifier import FeatureClassifier, class_means, unit

Distance = Literal["euclidean", "cosine"]


class ClassMeans(FeatureClassifier):
    """Scores from the distance of a query example to the mean of each class: ProtoNet, on any model.

    Snell, Swersky, Zemel 2017, https://arxiv.org/abs/1703.05175. With `c_n` the mean of the support
    features of class n, the scores of features f are `-scale |f - c_n|^2`, or `scale cos(f, c_n)` with
    `distance="cosine"` (Chen et al. 2021, Meta-Baseline, https://arxiv.org/abs/2003.04390). `Prototype`
    writes the equivalent linear head of the Euclidean distance into a model, from which gradient steps can
    start.

    Args:
        features, ways: as in `FeatureClassifier`.
        distance: `"euclidean"` (squared) or `"cosine"`.
        scale: as in the formula; a number, or an `nn.Parameter`, which is learned.

    Raises:
        ValueError: the distance is unknown.

    >>> from metamtl import Batch, nets
    >>> model, means = nets.mlp(2, 8, 3), ClassMeans("body.0", ways=3)  # before the last ReLU
    >>> support = Batch(torch.randn(6, 2), torch.arange(3).repeat(2))
    >>> params = means(model, support, nn.functional.cross_entropy)
    >>> means.predict(model, params, torch.randn(4, 2)).shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        features: Features = "body",
        *,
        ways: int | None = None,
        distance: Distance = "euclidean",
        scale: float | nn.Parameter = 1.0,
    ) -> None:
        super().__init__(features, ways=ways)
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance={distance!r} is not one of 'euclidean', 'cosine'.")
        self.distance, self.scale = distance, scale

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        scale = torch.as_tensor(self.scale, dtype=features.dtype, device=features.device)
        return {"means": class_means(features, classes), "scale": scale}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        if self.distance == "cosine":
            return values["scale"] * unit(features) @ unit(values["means"]).T
        return -values["scale"] * squared_distances(features, values["means"])


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """The squared Euclidean distances between the rows of `a` `[Q, F]` and `b` `[N, F]`: `[Q, N]`."""
    return (a[:, None] - b).square().sum(2)
