"""Metrics of outputs: shapes, missing labels, values that are not finite, tasks in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor
from torch.nn import functional as F

from metamtl import Metric
from metamtl.losses import MISSING
from metamtl.metrics import absolute_error, accuracy, mse, token_accuracy
from metamtl.metrics.scoring import score_named, score_tasks

from .scores_and_labels import NAN, N, Q, T, labels, rng, scores


def by_hand(metric: Metric, outputs: Tensor, y: Tensor) -> Tensor:
    """The value of each task from its labeled examples alone."""
    values = []
    for output, target in zip(outputs, y):
        mask = ~target.isnan() if target.is_floating_point() else target != MISSING
        mask = mask.flatten(1).any(1) if mask.dim() > 1 else mask
        values.append(torch.as_tensor(metric.function(output[mask], target[mask])).double().mean())
    return torch.stack(values)


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("metric", [accuracy, Metric(F.cross_entropy, higher_is_better=False)])
def test_one_value_for_each_task_over_its_labeled_examples(metric: Metric, missing: float) -> None:
    outputs, y = scores(), labels(missing)
    found = score_tasks({"metric": metric}, outputs, y)["metric"]
    torch.testing.assert_close(found.values, by_hand(metric, outputs, y), rtol=1e-12, atol=0)
    assert found.n == T and found.num_missing == int((y == MISSING).sum())


def test_targets_missing_in_part() -> None:
    output, y = torch.zeros(T, Q, 2), torch.ones(T, Q, 2)
    y[:, 0, 0], y[:, 1], y[..., 1] = NAN, NAN, 3.0
    y[:, 1] = NAN
    found = score_tasks({"mse": mse, "mae": absolute_error()}, output, y)
    assert found["mse"].values.tolist() == pytest.approx(
        [(9 + 4 * 5) / 5] * T
    )  # an example with one target
    assert found["mae"].values.tolist() == pytest.approx([(5 * 3 + 4) / 9] * T)  # every label counts alike
    assert found["mse"].num_missing == T


def test_tags_are_averaged_over_the_real_tokens_of_a_task() -> None:
    tags = torch.randint(2, (T, Q, 5), generator=rng())
    tags[torch.rand(T, Q, 5, generator=rng(1)) < 0.4] = MISSING
    output = torch.randn(T, Q, 5, 2, generator=rng(2))
    output[tags == MISSING] = NAN  # attention over padding
    found = score_tasks({"tokens": token_accuracy}, output, tags)["tokens"]
    for value, row, tag in zip(found.values, output, tags):
        real = tag != MISSING
        assert float(value) == pytest.approx(float((row.argmax(-1) == tag)[real].double().mean()))


def test_a_metric_of_single_examples_is_called_for_all_tasks_at_once() -> None:
    calls = []

    def hit(output: Tensor, y: Tensor) -> Tensor:
        calls.append(len(y))
        return output.argmax(-1) == y

    found = score_tasks({"hit": Metric(hit, True)}, scores(), labels())["hit"]
    assert calls == [Q, Q, T * Q] and found == score_tasks({"hit": accuracy}, scores(), labels())["hit"]


def normalized(output: Tensor, y: Tensor) -> Tensor:
    errors = F.cross_entropy(output, y, reduction="none")
    return errors / errors.max()


def shaped(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.view(2, Q // 2, N).flatten(0, 1), y, reduction="none")


@pytest.mark.parametrize("function", [normalized, shaped])
def test_a_metric_that_needs_the_set_is_called_task_by_task(function: Any) -> None:
    found = score_tasks({"m": Metric(function, False)}, scores(), labels())["m"]
    expected = torch.stack([function(o, y).mean() for o, y in zip(scores(), labels())])
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "convert",
    [float, lambda value: value.numpy(), lambda value: np.float32(value), lambda value: value > 1],
)
def test_numbers_and_numpy_values_are_taken(convert: Any) -> None:
    metric = Metric(lambda output, y: convert(F.cross_entropy(output, y)), higher_is_better=False)
    found = score_tasks({"loss": metric}, scores(), labels())["loss"]
    expected = [float(convert(F.cross_entropy(o, y))) for o, y in zip(scores(), labels())]
    assert found.values.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_function_of_scikit_learn() -> None:
    kappa = Metric(lambda output, y: cohen_kappa_score(y, output.argmax(-1)), higher_is_better=True)
    found = score_tasks({"kappa": kappa}, scores(), labels())["kappa"]
    expected = [cohen_kappa_score(y, o.argmax(-1)) for o, y in zip(scores().numpy(), labels().numpy())]
    assert found.values.tolist() == expected


def test_outputs_and_labels_in_a_dict() -> None:
    metric = Metric(lambda output, y: (output["a"].argmax(-1) == y["b"]).double(), True)
    found = score_tasks({"m": metric}, {"a": scores(), "name": "x"}, {"b": labels()})["m"]
    assert found == score_tasks({"m": accuracy}, scores(), labels())["m"]
    with pytest.raises(TypeError, match="the output is a dict, but this function compares two tensors"):
        score_tasks({"m": accuracy}, {"a": scores()}, labels())


def test_one_label_for_each_task() -> None:
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = score_tasks({"accuracy": accuracy}, F.one_hot(y, N).double(), y)["accuracy"]
    assert found.values.tolist() == [1.0] * T
    with pytest.raises(ValueError, match="no query example of task 3 has a label"):
        score_tasks({"accuracy": accuracy}, torch.zeros(T, N), y.where(torch.arange(T) != 3, MISSING))


def test_a_named_task_has_an_estimate_over_its_labeled_examples() -> None:
    output, y = scores()[0], labels(0.5)[0]
    loss = Metric(F.cross_entropy, higher_is_better=False)
    found = score_named({"accuracy": accuracy, "loss": loss}, output, y, "case")
    mask = y != MISSING
    assert found["accuracy"].values.tolist() == (output.argmax(-1) == y)[mask].double().tolist()
    assert found["accuracy"].num_missing == int((~mask).sum()) > 0
    assert found["loss"].n == 1 and found["loss"].mean == pytest.approx(
        float(F.cross_entropy(output[mask], y[mask])), rel=1e-12
    )


def test_labels_that_cannot_be_missing() -> None:
    y = torch.full((3, 4), 156, dtype=torch.uint8)  # 156 is -100 modulo 256
    found = score_tasks({"accuracy": accuracy}, torch.zeros(3, 4, 200), y)["accuracy"]
    assert found.num_missing == 0 and found.mean == 0
