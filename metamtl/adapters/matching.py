"""Attention over the support set: Matching Networks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import Features
from .feature_classifier import FeatureClassifier, unit


class Matching(FeatureClassifier):
    """Attention over the support examples by cosine similarity: Matching Networks.

    Vinyals et al. 2016, https://arxiv.org/abs/1606.04080. With `a_i` the softmax over support examples of
    `scale cos(f, f_i)`, the probability of class n is the sum of `a_i` over its examples. The scores are
    the logarithms of these probabilities, so cross-entropy is their negative log-likelihood.

    Differs from the paper in: 1. support and query set have the same features, without the full-context
    embeddings (LSTMs over the support set); 2. `scale`, which is 1 in the paper.

    Args:
        features, ways: as in `FeatureClassifier`.
        scale: as in the formula.

    >>> scores = Matching().classify(
    ...     {"support": torch.eye(2), "classes": torch.eye(2)}, torch.tensor([[3.0, 0.0]])
    ... )
    >>> scores.exp()
    tensor([[0.7311, 0.2689]])
    """

    def __init__(self, features: Features = "body", *, ways: int | None = None, scale: float = 1.0) -> None:
        super().__init__(features, ways=ways)
        self.scale = scale

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        return {"support": unit(features), "classes": classes}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        similarities = self.scale * unit(features) @ values["support"].T  # [Q, S]
        of_class = values["classes"].T[:, None] > 0  # [N, 1, S]
        by_class = torch.where(of_class, similarities, -torch.inf).logsumexp(2).T
        return by_class - similarities.logsumexp(1, keepdim=True)
