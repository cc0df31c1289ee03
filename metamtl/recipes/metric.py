"""Methods that compare features of the query set with those of the support set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..adapters import FEAT, ClassMeans, FullContext, Matching, Prototype, Relation, SimpleShot
from ..adapters.class_means import Distance
from ..aggregators import Aggregator
from ..functional import Features
from ..nets import mlp
from ..objectives import Objective, query_loss
from .base import Recipe, build


def protonet(
    ways: int | None = None,
    *,
    body: str = "body",
    head: str = "head",
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """ProtoNet: a head computed from class means (Snell et al. 2017)."""
    return build(Prototype(ways, body, head), aggregator, objective, layer)


def class_means(
    features: Features = "body",
    *,
    ways: int | None = None,
    distance: Distance = "euclidean",
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """ProtoNet with the features of any model, or with the cosine of features and class means.

    With the cosine, the scores have a learned scale, which is 10 at the start (Chen et al. 2021).
    """
    scale = nn.Parameter(torch.tensor(10.0)) if distance == "cosine" else 1.0
    adapter = ClassMeans(features, ways=ways, distance=distance, scale=scale)
    return build(adapter, aggregator, objective, layer)


def matching(
    features: Features = "body",
    *,
    ways: int | None = None,
    scale: float = 1.0,
    context: FullContext | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """Matching Networks: attention over the support set by cosine similarity (Vinyals et al. 2016).

    `context=adapters.FullContext(width)` adds the paper's full-context embeddings.
    """
    adapter = Matching(features, ways=ways, scale=scale, context=context)
    return build(adapter, aggregator, objective, layer)


def relation(
    width: int,
    features: Features = "body",
    *,
    ways: int | None = None,
    hidden: int = 8,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """Relation Networks: a learned comparison of query and class features (Sung et al. 2018).

    The relation module is a perceptron with layers of `2 width`, `hidden` and 1 units.
    """
    adapter = Relation(mlp(2 * width, hidden, 1), features, ways=ways)
    return build(adapter, aggregator, objective, layer)


def simple_shot(
    mean: Tensor | None = None,
    features: Features = "body",
    *,
    ways: int | None = None,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """SimpleShot: nearest class mean of centered and normalized features (Wang et al. 2019)."""
    return build(SimpleShot(mean, features, ways=ways), aggregator, objective, layer)


def feat(
    width: int,
    features: Features = "body",
    *,
    ways: int | None = None,
    temperature: float = 1.0,
    aggregator: Aggregator | None = None,
    objective: Objective = query_loss,
    layer: str | None = None,
) -> Recipe:
    """FEAT: class means adapted to each other by self-attention (Ye et al. 2020)."""
    return build(FEAT(width, features, ways=ways, temperature=temperature), aggregator, objective, layer)
