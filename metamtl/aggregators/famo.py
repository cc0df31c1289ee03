"""Equal rates of decrease, from the losses alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Aggregator, check_positive, weighted
from .scalarized import slopes


class FAMO(Aggregator):
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
        self.waiting = False  # for the losses after the step

    def get_extra_state(self) -> dict[str, Any]:
        adam = self.inner._optimizer
        return {
            "before": self.inner._prev_losses,
            "adam": None if adam is None else adam.state_dict(),
            "waiting": self.waiting,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["before"] is not None:
            self.inner.to(state["before"])  # or the logits, loaded next, would be rounded
        self.inner._prev_losses, self.waiting = state["before"], state["waiting"]
        self.inner._optimizer = None
        if state["adam"] is not None:
            adam = torch.optim.Adam([self.inner._w], lr=self.inner.lr, weight_decay=self.inner.weight_decay)
            adam.load_state_dict(state["adam"])
            self.inner._optimizer = adam

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        self.inner.to(losses)
        if self.waiting:
            self.update(losses)
        self._check(losses)
        direction = weighted(slopes(self.inner, losses), rows)
        self.waiting = True
        return direction

    def update(self, losses: Tensor) -> None:
        """Learn from the losses of the same batch after the optimizer's step, `[T]`."""
        self._check(losses)
        self.inner.update(losses.detach())
        self.waiting = False

    def _check(self, losses: Tensor) -> None:
        if losses.shape != self.inner.min_losses.shape:
            raise ValueError(
                f"FAMO(num_tasks={len(self.inner.min_losses)}) got the losses of {len(losses)} tasks;"
                " keep one aggregator for one set of tasks."
            )
        check_positive("FAMO", losses - self.inner.min_losses)
