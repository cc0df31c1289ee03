"""Centered, normalized features and the nearest class mean: SimpleShot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import Features, Params, features_of
from .class_means import squared_distances
from .feature_classifier import FeatureClassifier, class_means, unit


class SimpleShot(FeatureClassifier):
    """Nearest class mean of centered and l2-normalized features (CL2N): SimpleShot.

    Wang, Chao, Weinberger, van der Maaten 2019, https://arxiv.org/abs/1911.04623. Features are
    `(f - mean) / |f - mean|`, where `mean` is the mean feature of the training classes; the scores are the
    negative squared distances to the class means of the support set. A baseline for a model that was
    trained without episodes.

    Args:
        mean: the mean feature of the training classes, `[F]`, as `feature_mean` computes it; if None, the
            features are not centered (L2N).
        features, ways: as in `FeatureClassifier`.

    Raises:
        ValueError: `mean` is not a vector.

    >>> from metamtl import nets
    >>> model, train_images = nets.mlp(2, 8, 3), torch.randn(100, 2)
    >>> SimpleShot(feature_mean(model, train_images), ways=3).mean.shape
    torch.Size([8])
    """

    mean: Tensor | None

    def __init__(
        self, mean: Tensor | None = None, features: Features = "body", *, ways: int | None = None
    ) -> None:
        super().__init__(features, ways=ways)
        if mean is not None and mean.dim() != 1:
            raise ValueError(f"mean has shape {list(mean.shape)}; pass one feature vector, [F].")
        self.register_buffer("mean", None if mean is None else mean.detach().clone())

    def _normalized(self, features: Tensor) -> Tensor:
        if self.mean is None:
            return unit(features)
        if features.shape[1:] != self.mean.shape:
            raise ValueError(
                f"the features have {features.shape[1]} numbers, but mean has {len(self.mean)}; compute"
                " both with the same features=."
            )
        return unit(features - self.mean.to(features.dtype))

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        return {"means": class_means(self._normalized(features), classes)}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        return -squared_distances(self._normalized(features), values["means"])


@torch.no_grad()
def feature_mean(
    model: nn.Module, x: Tensor, features: Features = "body", *, batch_size: int = 256
) -> Tensor:
    """The mean feature of the examples `x` `[B, ...]`, `[F]`, for `SimpleShot`."""
    params: Params = dict(model.named_parameters())
    total = sum(features_of(model, params, part, features).sum(0) for part in x.split(batch_size))
    return torch.as_tensor(total) / len(x)
