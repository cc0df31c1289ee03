"""Base class of classifiers that are computed from the features of the support set."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import ADAPTER_VALUE, Features, Params, check_features, features_of
from ..losses import Loss
from .base import Adapter, initial_params, require_support


class FeatureClassifier(Adapter):
    """Base class: compute a classifier from support features, and apply it to query features.

    The model is any module; its last layers need not be a linear head. A subclass defines `fit` and
    `classify`. Every value that `classify` needs, learned parameters of the adapter included, is a result
    of `fit`.

    Args:
        features: the features `[B, F]`: the name of a module, whose output is used; a function
            `(model, x) -> features`; or None for the output of the model.
        ways: number of classes N; if None, the number of class ids of the task.

    Raises:
        TypeError: `features` is of another type.
        ValueError: when called: no module has this name, the features are not one vector for each example,
            or the number of classes is unknown.
    """

    def __init__(self, features: Features = "body", *, ways: int | None = None) -> None:
        super().__init__()
        if ways is not None and (not isinstance(ways, int) or isinstance(ways, bool) or ways < 1):
            raise ValueError(f"ways={ways!r}: pass the number of classes, or None.")
        self.features, self.ways = features, ways

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        check_features(model, self.features)
        self._num_classes(task[0] if isinstance(task, Tensor) and task.dim() == 2 else None)

    @abstractmethod
    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """The values of the classifier.

        Args:
            features: the support features `[S, F]`, in float32 or higher precision.
            classes: the one-hot labels `[S, N]` of the same dtype.
        """

    @abstractmethod
    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        """The scores `[Q, N]` of query features `[Q, F]`."""

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        check_features(model, self.features)
        x, y = require_support(support, self)
        params = initial_params(model, params)
        ways = self._num_classes(task)
        if y.dim() != 1 or y.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} needs one class for each support example, an integer tensor [S];"
                f" the labels are {y.dtype} with shape {list(y.shape)}."
            )
        features = self._features(model, params, x, task if isinstance(task, str) else None)
        classes = (y[:, None] == torch.arange(ways, device=y.device)).to(features.dtype)
        values = self.fit(features, classes)
        return {**params, **{ADAPTER_VALUE + name: value for name, value in values.items()}}

    def predict(self, model: nn.Module, params: Params, x: Any, task: Any = None, **call: Any) -> Any:
        features = self._features(model, params, x, task, **call)
        values = {
            name.removeprefix(ADAPTER_VALUE): value
            for name, value in params.items()
            if name.startswith(ADAPTER_VALUE)
        }
        return self.classify(values, features)

    def _features(self, model: nn.Module, params: Params, x: Any, task: Any, **call: Any) -> Tensor:
        features = features_of(model, params, x, self.features, task, **call)
        # Under autocast, features have half precision, which is too low for linear systems.
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def _num_classes(self, task: Any) -> int:
        num_ids = task.shape[0] if isinstance(task, Tensor) and task.dim() == 1 else None
        ways = self.ways or num_ids
        if ways is None:
            raise ValueError(
                f"{type(self).__name__} does not know the number of classes, because the episodes have no"
                " class ids [T, N] in `task`; pass ways=N."
            )
        return ways


def class_means(features: Tensor, classes: Tensor) -> Tensor:
    """The mean of the features of each class, `[N, F]`; NaN for a class without examples."""
    return (classes.T @ features) / classes.sum(0)[:, None]


def unit(vectors: Tensor) -> Tensor:
    """Vectors `[..., F]` divided by their length; a zero vector stays zero."""
    square = vectors.square().sum(-1, keepdim=True)
    # The derivative of the root is infinite at 0, so the root is taken of other values there.
    zero = square == 0
    return torch.where(zero, 0.0, vectors / torch.where(zero, 1.0, square).sqrt())
