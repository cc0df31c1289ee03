"""Losses that check the output of the model first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..episode import Episode
from ..losses import Loss

_ENTRY_BY_ENTRY = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
_ENTRY_MODULES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def checked_loss(loss: Loss, episode: Episode) -> Loss:
    """Wrap `loss` to raise an error if an output does not match the targets of `episode`.

    Cross-entropy needs a score for every label, and an elementwise loss needs targets in the shape of the
    output. Every loss must be a scalar.
    """
    if loss in _ENTRY_BY_ENTRY or isinstance(loss, _ENTRY_MODULES):
        return SameShapeLoss(loss)
    if loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss):
        return ClassLoss(loss, _highest_label(loss, episode))
    return ScalarLoss(loss)


@dataclass(frozen=True)
class ScalarLoss:
    """Any loss; raises an error if the result is not a scalar."""

    loss: Loss

    def __call__(self, output: Any, y: Any) -> Tensor:
        value = self.loss(output, y)
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the loss returns a {type(value).__name__}, which has no gradient; return a scalar tensor"
                " that is computed from the model's output."
            )
        if value.dim():
            raise ValueError(
                f"the loss returns a tensor of shape {list(value.shape)}; the loss of a task is a scalar:"
                " reduce it, for example with mean()."
            )
        return value


@dataclass(frozen=True)
class SameShapeLoss:
    """An elementwise loss; raises an error where torch would broadcast with only a warning."""

    loss: Loss

    def __call__(self, output: Any, y: Any) -> Tensor:
        if isinstance(output, Tensor) and isinstance(y, Tensor) and output.shape != y.shape:
            raise ValueError(
                f"the model's output has shape {list(output.shape)}, the targets {list(y.shape)}, and torch"
                " would broadcast them; reshape the targets to the shape of the head's output."
            )
        return self.loss(output, y)


@dataclass(frozen=True)
class ClassLoss:
    """Cross-entropy; raises an error if an output has no class for the label `top`."""

    loss: Loss
    top: int

    def __call__(self, output: Any, y: Any) -> Tensor:
        # Compiled code checks the labels itself, and `top` would become a constant in it.
        if not torch.compiler.is_compiling():
            self.check(output)
        return self.loss(output, y)

    def check(self, output: Any) -> None:
        """Raise ValueError if an output `[B, N]` has no class for the label `top`."""
        if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] <= self.top:
            raise ValueError(
                f"labels reach up to {self.top}, but the model's output has {output.shape[1]} classes"
                f" (labels 0 to {output.shape[1] - 1}); widen the head or fix the labels."
            )


def _highest_label(loss: Loss, episode: Episode) -> int:
    """The highest label of an episode, read here because engines and GPU kernels cannot check it."""
    ignored = loss.ignore_index if isinstance(loss, nn.CrossEntropyLoss) else -100
    top = -1 if episode.ways is None else episode.ways - 1
    for batch in (episode.support, episode.query):
        y = None if batch is None else batch[1]
        if isinstance(y, Tensor) and y.is_cuda and episode.ways is not None:
            continue  # reading labels would synchronize with the device
        if isinstance(y, Tensor) and not y.is_floating_point() and y.numel():
            lowest, highest = _span(y)
            if lowest <= ignored <= highest:
                labels = y[y != ignored]
                if not labels.numel():
                    continue
                lowest, highest = _span(labels)
            if lowest < 0:
                raise ValueError(f"labels reach down to {lowest}; classes are counted from 0.")
            top = max(top, highest)
    return top


def _span(y: Tensor) -> tuple[int, int]:
    lowest, highest = y.aminmax()
    return int(lowest), int(highest)
