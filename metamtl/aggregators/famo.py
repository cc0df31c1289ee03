"""Equal rates of decrease, from the losses alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import LossWeighting, check_positive
from .scalarized import slopes


class FAMO(LossWeighting):
    """Fast adaptive multitask optimization: weights under which all log-losses fall alike.

    Liu, Feng, Stone, Liu 2023, https://arxiv.org/abs/2306.03792, by TorchJD's `FAMO`. With `z = softmax(w)`
    and `b` the lower bounds, `d = c sum_t z_t / (L_t - b_t) g_t`, `c` such that the weights sum to one.
    Scale: mean. The logits `w` learn by an Adam of their own from how far each log-loss fell in the step.

    The paper looks at the losses of the same batch after the step: hand them to `update`. Where nobody
    does, the losses of the next call stand in for them.

    Args:
        num_tasks: T.
        lr, weight_decay: of the Adam that learns the logits.
        min_losses: lower bounds `b`, `[T]`; zero, where None.

    Raises:
        ValueError: a loss that is not above its bound; another number of tasks.

    >>> famo = FAMO(2)
    >>> famo(torch.tensor([1.0, 3.0]), torch.eye(2))
    tensor([0.7500, 0.2500])
    >>> famo.update(torch.tensor([0.5, 3.0]))  # the first has fallen: the second gets more
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
        self.waiting = False  # for the losses after the step

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
            self.inner.to(state["before"])  # or the logits, loaded next, would be rounded
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
        """Learn from the losses of the same batch after the optimizer's step.

        Args:
            losses: `[T]`.
            tasks: the names of the tasks in the order of `losses` (`Outcome.tasks`); if None, the order is
                that of the first call.
        """
        order = None if tasks is None else self.arrange(tasks, len(losses))
        losses = losses if order is None else losses[order]
        self._check(losses)
        self.inner.update(losses.detach())
        self.waiting = False

    def _check(self, losses: Tensor) -> None:
        self._check_number(None, len(losses))
        check_positive("FAMO", losses - self.inner.min_losses.to(losses))
