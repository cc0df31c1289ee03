"""Metrics reject outputs, labels and values that have no meaning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metamtl import Metric
from metamtl.losses import MISSING, image_mse, token_cross_entropy
from metamtl.metrics import absolute_error, accuracy, binary_accuracy, mse, token_accuracy
from metamtl.metrics.scoring import check_metrics, score_named, score_tasks

from .scores_and_labels import NAN, T, labels, scores


@pytest.mark.parametrize("missing", [MISSING, NAN])
def test_a_task_without_a_label_is_named(missing: float) -> None:
    y = labels().to(torch.int64 if missing == MISSING else torch.float64)
    y[4] = missing
    with pytest.raises(ValueError, match="no query example of task 14 has a label"):
        score_tasks({"accuracy": accuracy}, scores(), y, positions=range(10, 10 + T))
    with pytest.raises(ValueError, match="no query example of task 'case' has a label"):
        score_named({"accuracy": accuracy}, scores()[4], y[4], "case")


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_an_output_that_is_not_finite_is_rejected_with_its_task(value: float) -> None:
    outputs, y = scores(), labels()
    outputs[2, 1, 0] = outputs[5, 0, 2] = value
    with pytest.raises(FloatingPointError, match="output for task 12, 15 is not finite"):
        score_tasks({"accuracy": accuracy}, outputs, y, positions=range(10, 10 + T))
    with pytest.raises(FloatingPointError, match="output for task 'case' is not finite"):
        score_named({"accuracy": accuracy}, outputs[2], y[2], "case")
    y[2, 1] = y[5, 0] = MISSING  # what has no label is not measured
    assert score_tasks({"accuracy": accuracy}, outputs, y)["accuracy"].n == T


def test_minus_infinity_excludes_a_class() -> None:
    outputs = scores()
    outputs[..., 1] = -torch.inf
    assert score_tasks({"accuracy": accuracy}, outputs, labels())["accuracy"].n == T
    outputs[3, 2] = -torch.inf
    with pytest.raises(FloatingPointError, match="output for task 3 is not finite"):
        score_tasks({"accuracy": accuracy}, outputs, labels())


def test_a_value_that_is_not_finite_is_rejected_with_its_task_and_metric() -> None:
    metric = Metric(lambda output, y: output.sum(-1).sqrt(), True)
    outputs = scores().abs()
    outputs[3] = -1
    with pytest.raises(FloatingPointError, match="metric 'root' of task 3 is not finite"):
        score_tasks({"root": metric}, outputs, labels())
    with pytest.raises(FloatingPointError, match="metric 'root' of task 'case' is not finite"):
        score_named({"root": metric}, outputs[3], labels()[3], "case")


@pytest.mark.parametrize(
    ("metric", "output", "y", "shapes", "remedy"),
    [
        (accuracy, (6, 3), (6, 1), r"\[6, 3\], the labels \[6, 1\]", r"y.squeeze\(-1\)"),
        (accuracy, (6, 3), (6, 3), r"\[6, 3\], the labels \[6, 3\]", r"y.argmax\(-1\)"),
        (accuracy, (6, 3), (5,), r"\[6, 3\], the labels \[5\]", "one label for each row"),
        (accuracy, (6,), (6,), r"\[6\], the labels \[6\]", "binary_accuracy"),
        (accuracy, (2, 5, 3, 4), (2, 3, 4), r"\[2, 5, 3, 4\], the labels", r"movedim\(1, -1\)"),
        (token_accuracy, (6, 4, 3), (6, 5), r"\[6, 4, 3\], the labels \[6, 5\]", "one label"),
        (mse, (6, 3), (6, 1), r"\[6, 3\], the targets \[6, 1\]", "one target for each number"),
        (mse, (6, 1), (6, 3), r"\[6, 1\], the targets \[6, 3\]", "one target for each number"),
        (mse, (6,), (5,), r"\[6\], the targets \[5\]", "one target for each number"),
        (mse, (6, 2, 3), (6, 3, 2), r"\[6, 2, 3\], the targets \[6, 3, 2\]", "broadcast"),
        (binary_accuracy, (6, 2), (6, 1), r"\[6, 2\], the targets \[6, 1\]", "one number"),
        (binary_accuracy, (6,), (6, 1), r"\[6\], the targets \[6, 1\]", "one number"),
        (absolute_error(), (6, 3), (6, 1), r"\[6, 3\], the targets \[6, 1\]", "one number"),
    ],
)
def test_shapes_that_torch_would_broadcast(
    metric: Metric, output: tuple[int, ...], y: tuple[int, ...], shapes: str, remedy: str
) -> None:
    for words in (shapes, remedy):
        with pytest.raises(ValueError, match=words):
            metric(torch.zeros(output), torch.zeros(y).long())
    with pytest.raises(ValueError, match=rf"metric 'm', task 'case': .*{shapes}"):
        score_named({"m": metric}, torch.zeros(output), torch.zeros(y).long(), "case")


@pytest.mark.parametrize(
    ("loss", "output", "y"),
    [
        (image_mse, (6, 1), (6, 1, 4, 4)),
        (image_mse, (6, 16), (6, 1, 4, 5)),
        (token_cross_entropy, (6, 4, 3), (6, 3)),
        (token_cross_entropy, (4, 6, 3), (6, 4)),
    ],
)
def test_losses_check_shapes_alike(loss: Any, output: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the output has shape"):
        loss(torch.zeros(output), torch.zeros(y).long())


def test_shapes_that_fit() -> None:
    y = torch.tensor([1.0, 2.0, 3.0])
    for output, target in ((y, y), (y[:, None], y), (y, y[:, None])):
        assert mse(output + 1, target).tolist() == [1.0] * 3
    picture = torch.zeros(3, 1, 4, 4)
    assert mse(picture.flatten(1) + 1, picture).tolist() == mse(picture + 1, picture.flatten(1)).tolist()
    assert binary_accuracy(torch.zeros(3, 2), torch.zeros(3, 2).long()).shape == (6,)


@pytest.mark.parametrize(
    ("metric", "output", "y"),
    [
        (accuracy, torch.zeros(3, 3), torch.tensor([0, 1, 3])),
        (accuracy, torch.zeros(3, 3), torch.tensor([0, 1, -1])),
        (accuracy, torch.zeros(3, 1), torch.tensor([0, 1, 0])),
        (binary_accuracy, torch.zeros(3), torch.tensor([-1, 1, 1])),
        (binary_accuracy, torch.zeros(3), torch.tensor([0.0, 2.0, 1.0])),
    ],
)
def test_labels_that_no_output_matches(metric: Metric, output: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels range from .* correct the labels"):
        metric(output, y)


@pytest.mark.parametrize("y", [torch.tensor([1, MISSING, 0]), torch.tensor([1.0, NAN, 0.0])])
def test_binary_labels_may_be_missing(y: Tensor) -> None:
    assert binary_accuracy(torch.tensor([2.0, 2.0, 2.0]), y).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "function",
    [
        lambda output, y: output,  # one value for each class
        lambda output, y: (output[:, :1] - y).square(),  # [Q, 1] against [Q]
        lambda output, y: torch.zeros(len(y) + 1),
    ],
)
def test_values_of_another_shape(function: Any) -> None:
    with pytest.raises(
        ValueError, match=r"metric 'm', task 0: the metric returned values of shape .*\[6\]"
    ):
        score_tasks({"m": Metric(function, True)}, scores(), labels())


@pytest.mark.parametrize("value", [None, "good", object(), 1j])
def test_values_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(TypeError, match="the metric returned"):
        score_tasks({"m": Metric(lambda output, y: value, True)}, scores(), labels())


@pytest.mark.parametrize(
    ("metrics", "error", "words"),
    [
        ([accuracy], TypeError, "metrics is a list, .*pass a dict"),
        (accuracy, TypeError, "metrics is a Metric, .*pass a dict"),
        ({}, ValueError, "metrics is empty"),
        (
            {"loss": F.cross_entropy},
            TypeError,
            r"metrics\['loss'\] is a function.*Metric\(cross_entropy, higher_is_better=True\)",
        ),
        ({"loss": (F.cross_entropy, "max")}, TypeError, r"is a tuple, .*higher_is_better=True"),
        ({"case": {"accuracy": accuracy}}, TypeError, "for each task needs a dict of episodes"),
    ],
)
def test_metrics_without_a_direction(metrics: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_metrics(metrics)
    with pytest.raises(error, match="of task 'case'"):
        check_metrics(metrics, "case")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((F.cross_entropy, "max"), "higher_is_better='max' is not a bool"),
        ((torch.nn.MSELoss, False), "pass a function of .* or an instance"),
        (("accuracy", True), "the function of a Metric is 'accuracy'"),
    ],
)
def test_a_metric_that_cannot_be_called(arguments: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Metric(*arguments)
