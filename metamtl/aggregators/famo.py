"""FAMO: equal rates of decrease of the log-losses, computed only from the losses."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import LossWeighting, check_positive
from .scalarized import slopes


class FAMO(LossWeighting):
    """Fast adaptive multitask optimization: weights that make all log-losses decrease at the same rate.

    Formula: `d = sum_t w_t g_t`, `w_t = z_t / (L_t - b_t) / Z`, `z = softmax(w)`, with `Z` such that the
    weights sum to 1.

    Liu, Feng, Stone, Liu 2023, https://arxiv.org/abs/2306.03792, computed by TorchJD's `FAMO`. The logits
    `w` are learned by a separate Adam optimizer from the decrease of each log-loss in the step; `b_t` are
    lower bounds of the losses. Scale: mean.

    The paper uses the losses of the same batch after the step: pass them to `update`. If `update` is not
    called, the losses of the next call are used instead.

    Args:
        num_tasks: T.
        lr, weight_decay: options of the Adam optimizer of the logits.
        min_losses: lower bounds `b`, `[T]`; if None, zero.

    Raises:
        ValueError: a loss is not above its bound, or the number of tasks changes.

    >>> famo = FAMO(2)
    >>> famo(torch.tensor([1.0, 3.0]), torch.eye(2))
    tensor([0.7500, 0.2500])
    >>> famo.update(torch.tensor([0.5, 3.0]))  # the weight of the second increases
    >>> famo(torch.tensor([1.0, 3.0]), torch.eye(2))
    tensor([0.7405, 0.2595])
    """

    scale = "mean"

    def __init__(
        self,
        num_tasks: int,
        *,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        min_losses: Tensor | None = None,
    ) -> None:
        super().__init__()
        from torchjd import scalarization

        self.inner = scalarization.FAMO(num_tasks, min_losses, lr, weight_decay)
        self.expect(num_tasks)
        self.waiting = False  # whether the losses after the step are still missing

    def get_extra_state(self) -> dict[str, Any]:
        adam = self.inner._optimizer
        return {
            **super().get_extra_state(),
            "before": self.inner._prev_losses,
            "adam": None if adam is None else adam.state_dict(),
            "waiting": self.waiting,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        if state["before"] is not None:
            self.inner.to(state["before"])  # otherwise loading would round the logits
        self.inner._prev_losses, self.waiting = state["before"], state["waiting"]
        self.inner._optimizer = None
        if state["adam"] is not None:
            adam = torch.optim.Adam([self.inner._w], lr=self.inner.lr, weight_decay=self.inner.weight_decay)
            adam.load_state_dict(state["adam"])
            self.inner._optimizer = adam

    def snapshot(self) -> Any:
        return super().snapshot(), copy.deepcopy(self.get_extra_state())  # Adam writes its state in place

    def restore(self, snapshot: Any) -> None:
        super().restore(snapshot[0])
        self.set_extra_state(snapshot[1])

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        self._check(losses)
        self.inner.to(losses)
        if self.waiting:
            self.update(losses)
        weights = slopes(self.inner, losses)
        self.waiting = True
        return weights

    def update(self, losses: Tensor, tasks: Sequence[str] | None = None) -> None:
        """Update the logits from the losses of the same batch after the optimizer step.

        Args:
            losses: `[T]`.
            tasks: the names of the tasks in the order of `losses` (`Outcome.tasks`); if None, the order of
                the first call.
        """
        order = None if tasks is None else self.arrange(tasks, len(losses))
        losses = losses if order is None else losses[order]
        self._check(losses)
        self.inner.update(losses.detach())
        self.waiting = False

    def _check(self, losses: Tensor) -> None:
        self._check_number(None, len(losses))
        check_positive("FAMO", losses - self.inner.min_losses.to(losses))
