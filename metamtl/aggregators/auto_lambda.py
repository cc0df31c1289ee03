"""Task weights learned by looking one step ahead, on validation data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Aggregator, weighted


class AutoLambda(Aggregator):
    """Auto-Lambda: weights that descend the validation loss after the step which they cause.

    Liu, James, Davison, Johns 2022, https://arxiv.org/abs/2202.03091. The direction is `sum_t w_t g_t`.
    After a step of size a, `theta' = theta - a sum_t w_t g_t`, the validation loss changes with a weight by
    `dL_val(theta')/dw_t = -a <grad L_val(theta'), g_t>`, exactly. So `look_ahead()`, a second aggregator,
    sees a validation batch at theta' and moves the weights by `rate <grad L_val, g_t>`; `rate` includes a.

        weights = aggregators.AutoLambda(rate=1e-3)
        train, judge = recipes.joint(aggregator=weights), recipes.joint(aggregator=weights.look_ahead())
        ...
        optimizer.zero_grad()
        meta_backward(model, train, episodes, loss)
        optimizer.step()
        optimizer.zero_grad()
        meta_backward(model, judge, validation_episodes, loss)  # its .grad is for the weights; drop it

    Scale: own, that of the weights, which start at 0.1 each as in the authors' code.

    Differs from the paper in: 1. the optimizer's own step is the look-ahead, and what is learned from it
    serves from the next step on; 2. the inner product itself, which the authors approach by finite
    differences; 3. plain gradient steps for the weights, where the authors take Adam.

    Args:
        rate: step size of the weights, the learning rate of the model included.
        start: the first weights.
        every: there must be a look-ahead at least after so many calls.

    Raises:
        RuntimeError: calls without a look-ahead; the weights would never move.
    """

    memory = ("weights", "rows")
    by_parameter = True
    rows: Tensor | None
    unjudged: Tensor

    def __init__(self, rate: float, *, start: float = 0.1, every: int = 1) -> None:
        super().__init__()
        self.rate, self.start, self.every = rate, start, every
        self.register_buffer("unjudged", torch.zeros((), dtype=torch.long))

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        if int(self.unjudged) >= self.every:
            raise RuntimeError(
                f"AutoLambda has been called {int(self.unjudged)} times without a look-ahead, so its"
                " weights do not learn; after each step run meta_backward on a validation batch with"
                " aggregator=weights.look_ahead(), or set every= higher."
            )
        self.weights = self.recall("weights", torch.full_like(losses.detach(), self.start))
        self.rows = rows.detach().clone()
        self.unjudged += 1
        return weighted(self.weights, rows)

    def look_ahead(self, primary: Sequence[int] | None = None) -> Aggregator:
        """The aggregator for validation batches after the step: the mean of the primary tasks' rows.

        Args:
            primary: positions of the tasks whose validation loss counts; all, where None.
        """
        return _LookAhead(self, primary)

    def learn(self, validation: Tensor) -> None:
        """Move the weights; `validation` is the gradient `[n]` of the validation loss after the step."""
        if self.rows is None:
            raise RuntimeError("a look-ahead comes after a training step of the same AutoLambda.")
        if self.rows.shape[1:] != validation.shape:
            raise ValueError(
                f"the validation gradient has {len(validation)} entries, the training rows have"
                f" {self.rows.shape[1]}; both need the same tasks and the same shared parameters."
            )
        self.weights = self.weights + (self.rate * (self.rows @ validation)).to(self.weights)
        self.rows = None
        self.unjudged.zero_()


class _LookAhead(Aggregator):
    scale = "mean"
    by_parameter = True

    def __init__(self, weights: AutoLambda, primary: Sequence[int] | None) -> None:
        super().__init__()
        self._weights = (weights,)  # in a tuple, because its state is not ours
        self.primary = primary

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        chosen = rows if self.primary is None else rows[list(self.primary)]
        direction = chosen.detach().mean(0)
        self._weights[0].learn(direction)
        return direction
