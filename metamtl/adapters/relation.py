"""A learned comparison of query and class features: Relation Networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import Features, forward
from .feature_classifier import FeatureClassifier


class Relation(FeatureClassifier):
    """Scores from a learned relation module: Relation Networks.

    Sung et al. 2018, https://arxiv.org/abs/1711.06025. With `c_n` the sum of the support features of class
    n, the score of features f is `relation([c_n, f])`. The relation module is shared by all tasks and
    trained with the model: pass `recipe.parameters()` to the optimizer.

    Differs from the paper in: 1. the relation module compares feature vectors, not feature maps; 2. the
    scores are for any loss (the paper: a sigmoid and the squared error to the one-hot labels, which
    `relation=nn.Sequential(..., nn.Sigmoid())` and such a loss restore).

    Args:
        relation: a module `[B, 2 F] -> [B, 1]`.
        features, ways: as in `FeatureClassifier`.

    Raises:
        TypeError: `relation` is not a module.
        ValueError: when called: the relation module does not return one number for each pair.

    >>> from metamtl import nets
    >>> len(list(Relation(nets.mlp(2 * 8, 8, 1), ways=5).parameters()))
    4
    """

    def __init__(
        self, relation: nn.Module, features: Features = "body", *, ways: int | None = None
    ) -> None:
        super().__init__(features, ways=ways)
        if not isinstance(relation, nn.Module):
            raise TypeError(f"relation={relation!r}; pass a module [B, 2 F] -> [B, 1].")
        self.relation = relation

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        own = {f"relation.{name}": param for name, param in self.relation.named_parameters()}
        return {"sums": classes.T @ features, **own}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        sums = values["sums"]
        shape = len(features), len(sums), features.shape[1]
        pairs = torch.cat([sums.expand(shape), features[:, None].expand(shape)], 2).flatten(0, 1)
        own = {
            name.removeprefix("relation."): value
            for name, value in values.items()
            if name.startswith("relation.")
        }
        scores = forward(self.relation, own, pairs)
        if scores.numel() != len(pairs):
            raise ValueError(
                f"the relation module returns shape {list(scores.shape)} for {len(pairs)} pairs; it must"
                " return one number for each."
            )
        return scores.reshape(shape[:2])  # type: ignore[no-any-return]
