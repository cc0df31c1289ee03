"""Loss functions that ignore missing labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional.labels import MISSING, aligned, check_scores, same_entries

Loss = Callable[[Any, Any], Tensor]  # (model output, targets) -> scalar


def mean_over_labeled(function: Callable[..., Tensor]) -> Loss:
    """The mean of `function` over the labels that are not missing: `sum_i m_i f(o_i, y_i) / sum_i m_i`.

    `function(output, y, reduction="none")` is one of torch's losses for floating-point targets; a missing
    target is NaN. An output `[Q, 1]` is accepted for targets `[Q]`. If all targets are missing, the result
    is 0 / 0 = NaN, and `meta_backward` raises an error that names the task. A loss of zero would look like
    a solved task.

    >>> y = torch.tensor([1.0, float("nan"), 3.0])
    >>> mean_over_labeled(F.mse_loss)(torch.zeros(3), y)
    tensor(5.)
    """

    def loss(output: Tensor, y: Tensor) -> Tensor:
        output = aligned(output, y)
        mask = ~y.isnan()
        # Missing targets are replaced before `function` is called, so that no NaN reaches a gradient.
        values = function(output, y.where(mask, torch.zeros_like(y)), reduction="none")
        return values.where(mask, torch.zeros_like(values)).sum() / mask.sum()

    return loss


def token_cross_entropy(output: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of tags, the mean over real tokens, weighted by the class weights if there are any.

    Scores are `[B, L, N]`, tags `[B, L]` with `MISSING` at padding, weights `[N]`. If there is no real
    token, the result is NaN, as in `mean_over_labeled`.
    """
    check_scores(output, y)
    weight = None if weight is None else weight.to(output)
    return F.cross_entropy(output.flatten(0, 1), y.flatten(), weight, ignore_index=MISSING)


def image_mse(output: Tensor, y: Tensor) -> Tensor:
    """Mean squared error over examples and pixels; an output `[B, 784]` matches `[B, 1, 28, 28]`."""
    return F.mse_loss(*same_entries(output, y))
