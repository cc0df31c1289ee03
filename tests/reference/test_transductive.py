"""Transductive methods by explicit loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import Batch, adapters, recipes

S, Q, N, WIDTH = 6, 9, 3, 5


def features() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x, query = (torch.randn(n, WIDTH, generator=rng, dtype=torch.float64) for n in (S, Q))
    return x, torch.arange(N).repeat(S // N), query


def scores(adapter: adapters.FeatureClassifier) -> Tensor:
    x, y, query = features()
    return adapter.classify(adapter.fit(x, F.one_hot(y, N).double()), query)


def means(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x[y == n].mean(0) for n in range(N)])


def entropy(p: Tensor) -> Tensor:
    return torch.distributions.Categorical(probs=p).entropy()


def test_tim_is_gradient_descent_on_its_objective() -> None:
    x, y, query = (F.normalize(part) if part.is_floating_point() else part for part in features())

    def logits(f: Tensor, w: Tensor) -> Tensor:
        return -7.5 * torch.cdist(f, w).square()

    w = means(x, y).requires_grad_()
    for _ in range(4):
        p = logits(query, w).softmax(1)
        value = 0.1 * F.cross_entropy(logits(x, w), y) - entropy(p.mean(0)) + 0.1 * entropy(p).mean()
        (gradient,) = torch.autograd.grad(value, w)
        w = (w - 0.2 * gradient).detach().requires_grad_()
    assert torch.allclose(scores(adapters.TIM(steps=4, lr=0.2)), logits(query, w), rtol=1e-10)


def test_laplacian_shot_is_the_fixed_point_iteration() -> None:
    x, y, query = (F.normalize(part) if part.is_floating_point() else part for part in features())
    unary = torch.cdist(query, means(x, y)).square()
    w = torch.zeros(Q, Q, dtype=torch.float64)
    for q in range(Q):
        others = sorted((float((query[q] - query[p]).norm()), p) for p in range(Q) if p != q)
        for _, p in others[:2]:
            w[q, p] = 1
    z = (-unary).softmax(1)
    for _ in range(20):
        argument = -unary + 0.7 * torch.stack([sum(w[q, p] * z[p] for p in range(Q)) for q in range(Q)])
        z = argument.softmax(1)
    found = scores(adapters.LaplacianShot(weight=0.7, neighbors=2))
    assert torch.allclose(found, argument, rtol=1e-10)
    alone = adapters.LaplacianShot(neighbors=2)
    assert torch.allclose(alone.classify({"means": means(x, y)}, query[:1]), -unary[:1])


def test_transductive_fine_tuning_lowers_the_entropy_of_the_query_set() -> None:
    x, y, query = features()
    model = nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, N)).double()
    adapter = adapters.TransductiveFineTuning(3, 0.2, adapts="2", weight=0.5)
    found = adapter.predict(model, adapter(model, Batch(x, y), F.cross_entropy), query)
    params = dict(model.named_parameters())
    for _ in range(3):
        p = functional_call(model, params, (query,)).softmax(1)
        value = F.cross_entropy(functional_call(model, params, (x,)), y) + 0.5 * entropy(p).mean()
        names = ["2.weight", "2.bias"]
        for name, g in zip(names, torch.autograd.grad(value, [params[n] for n in names])):
            params = {**params, name: (params[name] - 0.2 * g).detach().requires_grad_()}
    assert torch.allclose(found, functional_call(model, params, (query,)), rtol=1e-10)


def test_frozen_logistic_normalizes_the_features() -> None:
    x, y, query = features()
    plain = adapters.Logistic(penalty=0.04).double()
    values = plain.fit(F.normalize(x), F.one_hot(y, N).double())
    adapter = recipes.frozen_logistic(ways=N).adapter.double()
    assert torch.allclose(scores(adapter), plain.classify(values, F.normalize(query)), rtol=1e-10)
    assert not list(adapter.parameters())


def test_what_is_transductive_says_so() -> None:
    transductive = [recipes.tim(), recipes.laplacian_shot(), recipes.transductive_fine_tuning()]
    assert all(recipe.adapter.transductive for recipe in transductive)
    assert adapters.Chain(adapters.Prototype(), adapters.TransductiveFineTuning()).transductive
    assert not any(r.adapter.transductive for r in (recipes.maml(), recipes.r2d2(), recipes.fine_tuning()))
