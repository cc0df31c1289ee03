from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch

from metamtl.losses import MISSING
from metamtl.metrics import entity_f1, roc_auc

TAGS = ("O", "B-person", "I-person", "B-place", "I-place")


def scores(tags: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(TAGS))[tags]


def test_roc_auc_counts_the_pairs_in_order() -> None:
    draw = np.random.default_rng(0)
    output, y = draw.normal(size=60).round(1), (draw.random(60) < 0.3).astype(float)
    y[::7] = np.nan
    positive, negative = output[y == 1], output[y == 0]
    # By definition: how often a positive scores above a negative, a tie counting half.
    pairs = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    for shape in ((60,), (60, 1)):
        found = roc_auc(torch.tensor(output).reshape(shape), torch.tensor(y).reshape(shape))
        assert found.dim() == 0 and float(found) == pytest.approx(pairs.mean(), abs=1e-12)
    assert roc_auc.higher_is_better


def test_roc_auc_of_one_class_says_so() -> None:
    y = torch.tensor([1.0, float("nan"), 1.0])
    with pytest.raises(ValueError, match=r"the 2 labels hold only \[1.0\]"):
        roc_auc(torch.randn(3), y)


def test_entity_f1_by_hand() -> None:
    truth = torch.tensor([[1, 2, 0, 3], [0, 3, 4, MISSING], [1, MISSING, MISSING, MISSING]])
    guess = torch.tensor([[1, 2, 0, 0], [0, 3, 0, 1], [3, 1, 1, 1]])
    # Four entities, three guesses: a right one, one cut short, one of another type. Padding is not read.
    precision, recall = 1 / 3, 1 / 4
    found = entity_f1(TAGS)(scores(guess), truth)
    assert float(found) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
    assert float(entity_f1(TAGS)(scores(truth.clamp(min=0)), truth)) == 1.0
    assert float(entity_f1(TAGS)(scores(torch.zeros_like(truth)), truth)) == 0.0
    with pytest.raises(ValueError, match="the 1 sentences hold no entity"):
        entity_f1(TAGS)(scores(truth[:1] * 0), truth[:1] * 0)


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("sklearn.metrics", "tabular", lambda: roc_auc(torch.zeros(2), torch.tensor([0.0, 1.0]))),
        ("seqeval.metrics", "text", lambda: entity_f1(TAGS)(torch.zeros(1, 1, 5), torch.ones(1, 1).long())),
    ],
)
def test_a_missing_package_names_its_extra(
    package: str, extra: str, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=rf"metamtl\[{extra}\]"):
        call()


@pytest.mark.parametrize(
    ("output", "y", "message"),
    [
        (torch.zeros(2, 3, 5), torch.ones(2, 4).long(), r"\[2, 3, 5\], the labels \[2, 4\]"),
        (torch.zeros(3, 3, 5), torch.ones(2, 3).long(), r"\[3, 3, 5\], the labels \[2, 3\]"),
        (torch.zeros(2, 3, 7), torch.ones(2, 3).long(), "scores for 7 tags, but there are 5"),
        (torch.zeros(2, 3, 5), torch.full((2, 3), 5), "labels range from 5 to 5, but there are 5 tags"),
    ],
)
def test_entity_f1_of_scores_that_do_not_fit_the_tags(
    output: torch.Tensor, y: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        entity_f1(TAGS)(output, y)
