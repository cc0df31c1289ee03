"""Class means and agreement between similar query examples: LaplacianShot."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import Features
from .class_means import squared_distances
from .feature_classifier import FeatureClassifier, class_means, unit


class LaplacianShot(FeatureClassifier):
    """Nearest class means, with agreement between neighboring query examples: LaplacianShot.

    Ziko, Dolz, Granger, Ben Ayed 2020, https://arxiv.org/abs/2006.15486. Features are l2-normalized. With
    `d_qn` the squared distance of query q to the mean of class n, and `w_qp` 1 if p is one of the nearest
    other query examples of q, the assignments minimize
    `sum_q sum_n y_qn d_qn + weight / 2 sum_qp w_qp |y_q - y_p|^2` by the updates
    `y_q = softmax(-d_q + weight sum_p w_qp y_p)`, from `y_q = softmax(-d_q)`. The scores are the arguments
    of the last softmax. **Transductive**: a prediction depends on all query inputs.

    Differs from the paper in: 1. class means without rectification; 2. a fixed number of updates.

    Args:
        features, ways: as in `FeatureClassifier`.
        weight, neighbors: as in the formula.
        steps: number of updates.

    >>> LaplacianShot(ways=5, neighbors=3).transductive
    True
    """

    def __init__(
        self,
        features: Features = "body",
        *,
        ways: int | None = None,
        weight: float = 1.0,
        neighbors: int = 3,
        steps: int = 20,
    ) -> None:
        super().__init__(features, ways=ways)
        self.weight, self.neighbors, self.steps = weight, neighbors, steps

    @property
    def transductive(self) -> bool:
        return True

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        return {"means": class_means(unit(features), classes)}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        query = unit(features)
        unary = scores = -squared_distances(query, values["means"])
        if len(query) == 1:
            return scores
        near = squared_distances(query, query).detach()
        near = near + torch.diag_embed(torch.full_like(near[0], torch.inf))  # not a neighbor of itself
        limit = near.topk(min(self.neighbors, len(query) - 1), 1, largest=False).values[:, -1:]
        affinity = (near <= limit).to(query.dtype)
        for _ in range(self.steps):
            scores = unary + self.weight * affinity @ scores.softmax(1)
        return scores
