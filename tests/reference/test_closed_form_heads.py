"""Heads that solve a convex problem, against scikit-learn and by their optimality conditions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.svm import SVC, LinearSVC
from torch import Tensor

from metamtl import adapters

S, N, F = 15, 3, 8


@pytest.fixture
def features() -> tuple[Tensor, Tensor, Tensor]:
    """Support features, labels, query features."""
    rng = torch.Generator().manual_seed(0)
    x, query = (torch.randn(n, F, generator=rng, dtype=torch.float64) for n in (S, 7))
    return x, torch.arange(N).repeat(S // N), query


def one_hot(y: Tensor, ways: int = N) -> Tensor:
    return (y[:, None] == torch.arange(ways)).double()


def weight(adapter: adapters.FeatureClassifier, x: Tensor, y: Tensor, ways: int = N) -> Tensor:
    return adapter.double().fit(x, one_hot(y, ways))["weight"].detach()


def close(found: Tensor, expected: np.ndarray, tolerance: float = 1e-8) -> bool:
    assert found.shape == expected.shape and np.linalg.norm(expected) > 1e-3
    return float(np.linalg.norm(found.detach().numpy() - expected) / np.linalg.norm(expected)) <= tolerance


@pytest.mark.parametrize("penalty", [0.01, 0.5, 100.0])
def test_ridge_is_that_of_scikit_learn(features: tuple[Tensor, Tensor, Tensor], penalty: float) -> None:
    x, y, query = features
    adapter = adapters.Ridge(scale=3.0, shift=0.5).double()
    adapter.log_penalty.data = torch.tensor(math.log(penalty), dtype=torch.float64)
    scores = adapter.classify(adapter.fit(x, one_hot(y)), query)
    ones = [np.concatenate([part.numpy(), np.ones((len(part), 1))], 1) for part in (x, query)]
    model = SklearnRidge(alpha=penalty, fit_intercept=False).fit(ones[0], one_hot(y).numpy())
    assert close(scores, 3.0 * model.predict(ones[1]) + 0.5)


@pytest.mark.parametrize("penalty", [0.01, 0.1, 10.0])
def test_logistic_is_that_of_scikit_learn(features: tuple[Tensor, Tensor, Tensor], penalty: float) -> None:
    x, y, query = features
    adapter = adapters.Logistic().double()
    adapter.log_penalty.data = torch.tensor(math.log(penalty), dtype=torch.float64)
    values = adapter.fit(x, one_hot(y))
    model = LogisticRegression(C=1 / (S * penalty), tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())
    model.set_params(solver="newton-cholesky", warm_start=True).fit(x.numpy(), y.numpy())
    assert close(values["weight"], model.coef_.T)
    assert close(adapter.classify(values, query).softmax(1), model.predict_proba(query.numpy()))


@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
def test_svm_is_that_of_scikit_learn(features: tuple[Tensor, Tensor, Tensor], C: float) -> None:
    x, y, _ = features
    model = LinearSVC(
        C=C,
        multi_class="crammer_singer",
        fit_intercept=False,
        tol=1e-14,
        max_iter=10_000_000,
        random_state=0,
    )
    assert close(weight(adapters.SVM(C=C), x, y), model.fit(x.numpy(), y.numpy()).coef_.T)


def test_svm_of_two_classes_is_that_of_svc(features: tuple[Tensor, Tensor, Tensor]) -> None:
    """With the mirror image of every example, SVC has no intercept. Its kernel is in single precision."""
    x, y = features[0], torch.arange(S) % 2
    w = weight(adapters.SVM(C=0.1), x, y, 2)
    mirrored = np.concatenate([x.numpy(), -x.numpy()]), np.concatenate([y.numpy(), 1 - y.numpy()])
    model = SVC(C=0.1, kernel="linear", tol=1e-13).fit(*mirrored)
    assert close(w[:, 1] - w[:, 0], model.coef_[0], 2e-7)


def test_svm_weights_minimize_the_margin_loss(features: tuple[Tensor, Tensor, Tensor]) -> None:
    """Without a solver of others: every change of the weights raises the primal objective."""
    x, y, _ = features
    w = weight(adapters.SVM(C=0.3), x, y)

    def primal(w: Tensor) -> float:
        scores = x @ w
        margins = scores + (1 - one_hot(y)) - scores.gather(1, y[:, None])
        return float(0.5 * w.square().sum() + 0.3 * margins.max(1).values.sum())

    rng = torch.Generator().manual_seed(1)
    for size in (1e-1, 1e-3, 1e-5):
        for _ in range(20):
            change = torch.randn(w.shape, generator=rng, dtype=torch.float64)
            assert primal(w + size * change / change.norm()) > primal(w)


@pytest.mark.parametrize("make", [adapters.Ridge, adapters.Logistic, adapters.SVM])
def test_single_precision_suffices(features: tuple[Tensor, Tensor, Tensor], make: type) -> None:
    x, y, _ = features
    expected = weight(make(), x, y)
    found = make().fit(x.float(), one_hot(y).float())["weight"]
    assert found.dtype == torch.float32 and close(found.double(), expected.numpy(), 1e-4)
