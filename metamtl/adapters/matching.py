"""Attention over the support set: Matching Networks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import Features
from .feature_classifier import FeatureClassifier, unit
from .full_context import FullContext


class Matching(FeatureClassifier):
    """Attention over the support examples by cosine similarity: Matching Networks.

    Vinyals et al. 2016, https://arxiv.org/abs/1606.04080. With `a_i` the softmax over support examples of
    `scale cos(f, f_i)`, the probability of class n is the sum of `a_i` over its examples. The scores are
    the logarithms of these probabilities, so cross-entropy is their negative log-likelihood.

    With `context`, the features are the full-context embeddings of the paper's appendix. They are trained
    with the model: pass `recipe.parameters()` to the optimizer.

    Differs from the paper in: `scale`, which is 1 in the paper.

    Args:
        features, ways: as in `FeatureClassifier`.
        scale: as in the formula.
        context: the module that computes full-context embeddings; if None, the features themselves are
            compared.

    Raises:
        TypeError: `context` is of another type.

    >>> scores = Matching().classify(
    ...     {"support": torch.eye(2), "classes": torch.eye(2)}, torch.tensor([[3.0, 0.0]])
    ... )
    >>> scores.exp()
    tensor([[0.7311, 0.2689]])
    """

    def __init__(
        self,
        features: Features = "body",
        *,
        ways: int | None = None,
        scale: float = 1.0,
        context: FullContext | None = None,
    ) -> None:
        super().__init__(features, ways=ways)
        if context is not None and not isinstance(context, FullContext):
            raise TypeError(f"context={context!r}; pass FullContext(width), or None.")
        self.scale, self.context = scale, context

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        if self.context is None:
            return {"support": features, "classes": classes}
        support = self.context.embed_support(features)
        return {"support": support, "classes": classes, **dict(self.context.named_parameters())}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        support = values["support"]
        if self.context is not None:
            features = self.context.embed_query(values, support, features)
        similarities = self.scale * unit(features) @ unit(support).T  # [Q, S]
        of_class = values["classes"].T[:, None] > 0  # [N, 1, S]
        by_class = torch.where(of_class, similarities, -torch.inf).logsumexp(2).T
        return by_class - similarities.logsumexp(1, keepdim=True)
