"""Methods that compare features, against scikit-learn, learn2learn, torch and their formulas."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, adapters, nets, recipes

S, N, WIDTH = 12, 3, 8


@pytest.fixture
def features() -> tuple[Tensor, Tensor, Tensor]:
    """Support features, labels, query features."""
    rng = torch.Generator().manual_seed(0)
    x, query = (torch.randn(n, WIDTH, generator=rng, dtype=torch.float64) for n in (S, 7))
    return x, torch.arange(N).repeat(S // N), query


def scores(adapter: adapters.FeatureClassifier, features: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, y, query = features
    adapter.double()
    return adapter.classify(adapter.fit(x, (y[:, None] == torch.arange(N)).double()), query).detach()


def means(features: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([features[0][features[1] == n].mean(0) for n in range(N)])


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    assert found.shape == expected.shape and expected.norm() > 1e-3
    return float((found - expected).norm() / expected.norm()) <= tolerance


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_class_means_are_those_of_learn2learn_and_scikit_learn(
    l2l: ModuleType, features: tuple[Tensor, Tensor, Tensor], distance: str
) -> None:
    found = scores(adapters.ClassMeans(distance=distance), features)
    x, y, query = features
    # learn2learn adds 1e-8 to lengths.
    theirs = l2l.nn.PrototypicalClassifier(x, y, distance=distance, normalize=False)(query)
    assert close(found, theirs, 1e-12 if distance == "euclidean" else 1e-7)
    if distance == "cosine":
        expected = cosine_similarity(query, means(features))
    else:
        expected = -(euclidean_distances(query, means(features)) ** 2)
    assert close(found, torch.as_tensor(expected))
    assert close(scores(adapters.ClassMeans(distance=distance, scale=3.0), features), 3 * found)


def test_class_means_have_the_probabilities_of_the_linear_head() -> None:
    rng = torch.Generator().manual_seed(0)
    x, query = torch.randn(S, 2, generator=rng).double(), torch.randn(5, 2, generator=rng).double()
    model, loss = nets.mlp(2, WIDTH, N).double(), F.cross_entropy
    support = Batch(x, torch.arange(N).repeat(S // N))
    found = []
    for adapter in (adapters.Prototype(), adapters.ClassMeans(ways=N)):
        params = adapter(model, support, loss)
        found.append(adapter.predict(model, params, query).softmax(1).detach())
    assert close(*found)


def test_simple_shot_is_the_nearest_mean_of_normalized_vectors(
    features: tuple[Tensor, Tensor, Tensor],
) -> None:
    x, y, query = features
    mean = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    x, query = (F.normalize(part - mean) for part in (x, query))
    expected = -torch.as_tensor(euclidean_distances(query, means((x, y, query))) ** 2)
    assert close(scores(adapters.SimpleShot(mean), features), expected)
    assert not close(scores(adapters.SimpleShot(), features), expected)


def test_the_mean_feature_is_that_of_all_examples() -> None:
    model, x = nets.mlp(2, WIDTH, N), torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(adapters.feature_mean(model, x, batch_size=7), model.body(x).mean(0), atol=1e-6)


def test_matching_sums_the_attention_of_each_class(features: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, query = features
    attention = (2.0 * F.cosine_similarity(query[:, None], x, dim=2)).softmax(1)
    expected = torch.stack([attention[:, y == n].sum(1) for n in range(N)], 1)
    found = scores(adapters.Matching(scale=2.0), features)
    assert close(found.exp(), expected) and torch.allclose(found.exp().sum(1), torch.ones(7).double())


def test_full_context_embeddings_are_the_lstms_of_torch(features: tuple[Tensor, Tensor, Tensor]) -> None:
    """The formulas of the paper's appendix, with the recurrent layers of torch and a loop over queries."""
    x, y, query = features
    context = adapters.FullContext(WIDTH, steps=3)
    found = scores(adapters.Matching(scale=2.0, context=context), features)
    with torch.no_grad():
        both = context.support(x[:, None])[0][:, 0]
        g = x + both[:, :WIDTH] + both[:, WIDTH:]
        lstm = nn.LSTMCell(WIDTH, WIDTH).double()  # of the state h; r is a further input
        lstm.weight_hh.copy_(context.query.weight_hh)
        lstm.weight_ih.copy_(context.query.weight_ih[:, WIDTH:])
        lstm.bias_ih.zero_()
        f = []
        for feature in query:
            h, c = torch.zeros(WIDTH).double(), torch.zeros(WIDTH).double()
            for _ in range(3):
                r = sum(a * row for a, row in zip((g @ h).softmax(0), g))
                lstm.bias_hh.copy_(
                    context.query.weight_ih[:, :WIDTH] @ r + context.query.bias_ih + context.query.bias_hh
                )
                output, c = lstm(feature, (h, c))
                h = output + feature
            f.append(h)
        attention = (2.0 * F.cosine_similarity(torch.stack(f)[:, None], g, dim=2)).softmax(1)
    assert close(found.exp(), torch.stack([attention[:, y == n].sum(1) for n in range(N)], 1))
    assert not close(found, scores(adapters.Matching(scale=2.0), features), 1e-3)


def test_full_context_is_rejected_where_it_cannot_work(features: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        adapters.FullContext(WIDTH, steps=0)
    with pytest.raises(ValueError, match=r"FullContext\(width=3\), but the features have 8"):
        scores(adapters.Matching(context=adapters.FullContext(3)), features)
    with pytest.raises(TypeError, match="pass FullContext"):
        adapters.Matching(context=nn.LSTM(WIDTH, WIDTH))  # type: ignore[arg-type]


def test_relation_compares_every_query_with_the_sum_of_every_class(
    features: tuple[Tensor, Tensor, Tensor],
) -> None:
    x, y, query = features
    adapter = recipes.relation(WIDTH, hidden=4).adapter
    found = scores(adapter, features)
    for i, n in ((0, 0), (3, 2), (6, 1)):
        pair = torch.cat([x[y == n].sum(0), query[i]])
        assert float(found[i, n]) == pytest.approx(adapter.relation(pair).item(), rel=1e-12)


def test_feat_is_the_attention_of_torch(features: tuple[Tensor, Tensor, Tensor]) -> None:
    adapter = adapters.FEAT(WIDTH, temperature=4.0)
    found = scores(adapter, features)
    attention = nn.MultiheadAttention(WIDTH, 1).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(
            torch.cat([layer.weight for layer in (adapter.query, adapter.key, adapter.value)])
        )
        attention.in_proj_bias.zero_()
        attention.out_proj.weight.copy_(adapter.out.weight)
        attention.out_proj.bias.copy_(adapter.out.bias)
        c = means(features)
        adapted = adapter.norm(c + attention(c, c, c, need_weights=False)[0])
    expected = -torch.as_tensor(euclidean_distances(features[2], adapted) ** 2) / 4.0
    assert close(found, expected)


@pytest.mark.parametrize("features", ["1", lambda model, x: x[:, None], None])
def test_features_that_are_not_one_vector_for_each_example(features: object) -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 1))
    support = Batch(torch.randn(6, 4), torch.arange(3).repeat(2))
    with pytest.raises(ValueError, match=r"a vector for each example, \[B, F\], is needed"):
        adapters.ClassMeans(features, ways=3)(model, support, F.cross_entropy)


def test_names_and_types_that_choose_no_features() -> None:
    model, support = nets.mlp(4, 8, 3), Batch(torch.randn(6, 4), torch.arange(3).repeat(2))
    with pytest.raises(ValueError, match="'encoder' names no module of MLP; it has 'body', 'head'"):
        adapters.ClassMeans("encoder", ways=3)(model, support, F.cross_entropy)
    with pytest.raises(TypeError, match="pass the name of a module"):
        adapters.ClassMeans(3, ways=3)(model, support, F.cross_entropy)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass ways=N"):
        adapters.ClassMeans()(model, support, F.cross_entropy)
    with pytest.raises(ValueError, match="put it last"):
        adapters.Chain(adapters.ClassMeans(), adapters.Gradient(1))
