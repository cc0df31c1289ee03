"""Losses of labeled examples; a missing label adds nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional.labels import MISSING, aligned, check_scores, same_entries

Loss = Callable[[Any, Any], Tensor]  # (model output, targets) -> scalar


def mean_over_labeled(function: Callable[..., Tensor]) -> Loss:
    """The mean of `function` over the labels that are there: `sum_i m_i f(o_i, y_i) / sum_i m_i`.

    `function(output, y, reduction="none")` is one of torch's losses for floating-point targets; a missing
    target is NaN. The output `[Q, 1]` of a head serves targets `[Q]`. Where no target is there the result
    is 0 / 0 = NaN, which `meta_backward` refuses with the task's name: no label, no gradient, and no zero
    that looks like a solved task.

    >>> y = torch.tensor([1.0, float("nan"), 3.0])
    >>> mean_over_labeled(F.mse_loss)(torch.zeros(3), y)
    tensor(5.)
    """

    def loss(output: Tensor, y: Tensor) -> Tensor:
        output = aligned(output, y)
        there = ~y.isnan()
        # The missing targets are replaced before the function sees them, so that no NaN reaches a gradient.
        values = function(output, y.where(there, torch.zeros_like(y)), reduction="none")
        return values.where(there, torch.zeros_like(values)).sum() / there.sum()

    return loss


def token_cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of tags, the mean over real tokens.

    Scores `[B, L, N]`, tags `[B, L]` with `MISSING` where there is no token. Where no token is real the
    result is NaN, as in `mean_over_labeled`.
    """
    check_scores(output, y)
    return F.cross_entropy(output.flatten(0, 1), y.flatten(), ignore_index=MISSING)


def image_mse(output: Tensor, y: Tensor) -> Tensor:
    """Squared error of pictures, mean over examples and pixels; `[B, 784]` serves `[B, 1, 28, 28]`."""
    return F.mse_loss(*same_entries(output, y))
