"""Auto-Lambda: task weights that minimize the validation loss after one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Aggregator, Combined, LossWeighting


class AutoLambda(LossWeighting):
    """Auto-Lambda: weights learned by gradient descent on the validation loss after the next step.

    Formula: `d = sum_t w_t g_t`; after the step `w_t <- w_t + rate <grad L_val, g_t>`.

    Liu, James, Davison, Johns 2022, https://arxiv.org/abs/2202.03091. After a step of size a,
    `theta' = theta - a sum_t w_t g_t`, the derivative of the validation loss is exactly
    `dL_val(theta')/dw_t = -a <grad L_val(theta'), g_t>`. Therefore `look_ahead()`, a second aggregator,
    takes a validation batch at theta' and adds `rate <grad L_val, g_t>` to the weights. `rate` includes a.

        weights = aggregators.AutoLambda(rate=1e-3)
        train, validate = recipes.joint(aggregator=weights), recipes.joint(aggregator=weights.look_ahead())
        ...
        optimizer.zero_grad()
        meta_backward(model, train, episodes, loss)
        optimizer.step()
        optimizer.zero_grad()
        meta_backward(model, validate, validation_episodes, loss)  # updates the weights; discard .grad

    Scale: own, that of the weights, which are initialized to 0.1 as in the authors' code.

    Differs from the paper in: 1. the optimizer's own step is the look-ahead, so new weights take effect in
    the next step; 2. the exact inner product instead of finite differences; 3. plain gradient steps for the
    weights instead of Adam.

    Args:
        rate: step size of the weights, including the learning rate of the model.
        start: initial value of the weights.
        every: the maximum number of calls between two look-aheads.

    Raises:
        RuntimeError: more than `every` calls without a look-ahead, so that the weights are not learned.
    """

    state_names = ("task_weights", "rows")
    by_parameter = True
    reads = "rows"
    task_weights: Tensor | None
    rows: Tensor | None
    unjudged: Tensor

    def __init__(self, rate: float, *, start: float = 0.1, every: int = 1) -> None:
        super().__init__()
        self.rate, self.start, self.every = rate, start, every
        self.register_buffer("unjudged", torch.zeros((), dtype=torch.long))

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        if int(self.unjudged) >= self.every:
            raise RuntimeError(
                f"AutoLambda has been called {int(self.unjudged)} times without a look-ahead, so its"
                " weights do not learn; after each step run meta_backward on a validation batch with"
                " aggregator=weights.look_ahead(), or set every= higher."
            )
        assert gradients is not None
        weights = self.get_state("task_weights", torch.full_like(losses.detach(), self.start))
        self.task_weights, self.rows = weights, gradients.detach().clone()
        self.unjudged = self.unjudged + 1
        return weights

    def look_ahead(self, primary: Sequence[int | str] | None = None) -> Aggregator:
        """The aggregator for validation batches after the step: the mean of the primary tasks' gradients.

        Args:
            primary: the tasks whose validation loss is minimized, by name or by position in the validation
                batch; if None, all tasks of the batch.
        """
        return _LookAhead(self, primary)

    def learn(self, validation: Tensor) -> None:
        """Update the weights; `validation` is the gradient `[n]` of the validation loss after the step."""
        if self.rows is None:
            raise RuntimeError("a look-ahead comes after a training step of the same AutoLambda.")
        if self.rows.shape[1:] != validation.shape:
            raise ValueError(
                f"the validation gradient has {len(validation)} entries, the training rows have"
                f" {self.rows.shape[1]}; both need the same tasks and the same shared parameters."
            )
        assert self.task_weights is not None
        self.task_weights = self.task_weights + (self.rate * (self.rows @ validation)).to(self.task_weights)
        self.rows = None
        self.unjudged = torch.zeros_like(self.unjudged)


class _LookAhead(Aggregator):
    scale = "mean"
    by_parameter = True

    def __init__(self, weights: AutoLambda, primary: Sequence[int | str] | None) -> None:
        super().__init__()
        self._weights = (weights,)  # in a tuple, so that it is not registered as a submodule
        self.primary = primary

    def snapshot(self) -> Any:
        return super().snapshot(), self._weights[0].snapshot()

    def restore(self, snapshot: Any) -> None:
        super().restore(snapshot[0])
        self._weights[0].restore(snapshot[1])

    def forward(self, losses: Tensor, gradients: Tensor) -> Tensor:
        return self._learn(gradients, None)

    def combine(
        self, losses: Tensor, gradients: Tensor | None, tasks: Sequence[str] | None = None
    ) -> Combined:
        assert gradients is not None
        return Combined(self._learn(gradients, tasks), None)

    def _learn(self, gradients: Tensor, tasks: Sequence[str] | None) -> Tensor:
        names = list(tasks or ())
        unknown = [task for task in self.primary or () if isinstance(task, str) and task not in names]
        if unknown:
            raise ValueError(
                f"look_ahead(primary={list(self.primary or ())}): this batch has no task {unknown[0]!r};"
                f" its tasks are {', '.join(names) or 'without names'}."
            )
        if self.primary is not None:
            gradients = gradients[
                [names.index(task) if isinstance(task, str) else task for task in self.primary]
            ]
        direction = gradients.detach().mean(0)
        self._weights[0].learn(direction)
        return direction
