"""Losses that check the model's output before they compute anything."""

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
    """`loss`, with an error for an output that does not fit the targets of `episode`.

    Cross-entropy needs an output for every label, and a loss that compares entry by entry needs targets of
    the output's shape. Every loss must be a scalar.
    """
    if loss in _ENTRY_BY_ENTRY or isinstance(loss, _ENTRY_MODULES):
        return SameShapeLoss(loss)
    if loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss):
        return ClassLoss(loss, _highest_label(loss, episode))
    return ScalarLoss(loss)


@dataclass(frozen=True)
class ScalarLoss:
    """A loss of any kind, with an error for a result that is no scalar."""

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
                " reduce it, for example by mean()."
            )
        return value


@dataclass(frozen=True)
class SameShapeLoss:
    """A loss that compares entry by entry, where torch would broadcast with a mere warning."""

    loss: Loss

    def __call__(self, output: Any, y: Any) -> Tensor:
        if isinstance(output, Tensor) and isinstance(y, Tensor) and output.shape != y.shape:
            raise ValueError(
                f"the model's output has shape {list(output.shape)}, the targets {list(y.shape)}, and torch"
                " would broadcast one against the other; give the targets the shape of the head's output."
            )
        return self.loss(output, y)


@dataclass(frozen=True)
class ClassLoss:
    """Cross-entropy of labels up to `top`."""

    loss: Loss
    top: int

    def __call__(self, output: Any, y: Any) -> Tensor:
        # Compiled code checks the labels by itself, and `top` would be compiled into it.
        if not torch.compiler.is_compiling():
            self.check(output)
        return self.loss(output, y)

    def check(self, output: Any) -> None:
        """Raise an error if an output `[B, N]` has no class for the label `top`."""
        if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] <= self.top:
            raise ValueError(
                f"labels reach up to {self.top}, but the model's output has {output.shape[1]} classes"
                f" (labels 0 to {output.shape[1] - 1}); widen the head or fix the labels."
            )


def _highest_label(loss: Loss, episode: Episode) -> int:
    """The highest label of an episode. Read once, here: inside an engine, or on a GPU, it is too late."""
    ignored = loss.ignore_index if isinstance(loss, nn.CrossEntropyLoss) else -100
    top = -1 if episode.ways is None else episode.ways - 1
    for batch in (episode.support, episode.query):
        y = None if batch is None else batch[1]
        if isinstance(y, Tensor) and y.is_cuda and episode.ways is not None:
            continue  # looking would wait for the device
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
