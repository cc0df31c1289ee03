"""Class means adapted to each other by self-attention: FEAT."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import Features
from .class_means import squared_distances
from .feature_classifier import FeatureClassifier, class_means


class FEAT(FeatureClassifier):
    """Class means that a transformer adapts to the task before they are compared: FEAT.

    Ye, Hu, Zhan, Sha 2020, https://arxiv.org/abs/1812.03664. With class means `C` `[N, F]`, the adapted
    means are `LayerNorm(C + softmax((C Wq) (C Wk)^T / sqrt(F)) (C Wv) Wo)`, a function of the set of
    classes; the scores are `-|f - c_n|^2 / temperature`. The transformer is trained with the model: pass
    `recipe.parameters()` to the optimizer.

    Differs from the authors' code in: no dropout and no contrastive regularization.

    Args:
        width: F, the number of features.
        features, ways: as in `FeatureClassifier`.
        temperature: as in the formula.

    Raises:
        ValueError: when called: the features have another width.

    >>> sorted(name for name, _ in FEAT(8).named_parameters())
    ['key.weight', 'norm.bias', 'norm.weight', 'out.bias', 'out.weight', 'query.weight', 'value.weight']
    """

    def __init__(
        self,
        width: int,
        features: Features = "body",
        *,
        ways: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(features, ways=ways)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.temperature = temperature

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        width = self.out.in_features
        if features.shape[1] != width:
            raise ValueError(f"FEAT(width={width}), but the features have {features.shape[1]} numbers.")
        means = class_means(features, classes)
        attention = torch.softmax(self.query(means) @ self.key(means).T / math.sqrt(width), 1)
        update = self.out(attention @ self.value(means))
        return {"means": F.layer_norm(means + update, (width,), self.norm.weight, self.norm.bias)}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        return -squared_distances(features, values["means"]) / self.temperature
