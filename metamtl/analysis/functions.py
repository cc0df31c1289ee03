"""The objective, the loss and the output of every task as functions of the shared parameters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..engines import TaskProblem
from ..engines.base import split_tasks
from ..functional import Params, trainable
from ..functional.differentiate import detached, gradient
from ..functional.random_state import seeded
from ..recipes import Recipe
from ..validation import checked_loss
from .arguments import Episodes, Losses, check_analysis, check_depends, smooth, task_names


@dataclass(frozen=True)
class TaskFunctions:
    """The tasks of one call as pure functions; nothing is written to the model.

    A dict of parameters that is passed to a method may be a part of the trainable ones; the others have
    their current values. The random numbers of a task (dropout) are the same in every evaluation, and the
    global generators do not change.

    Attributes:
        names: of the tasks.
        params: the trainable parameters of the model, detached.
    """

    names: tuple[str, ...]
    params: Params
    problems: tuple[TaskProblem, ...]
    data: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        recipe: Recipe,
        episodes: Episodes,
        loss: Losses,
        *,
        order: int = 1,
        least: int = 1,
    ) -> TaskFunctions:
        """Check the arguments and build the functions.

        Args:
            order: the order of the derivatives that are needed.
            least: the least number of tasks.

        Raises:
            TypeError, ValueError: as `meta_backward`; there are fewer tasks than `least`; `order` is 2 and
                the recipe's gradient is not the gradient of a function.
        """
        episodes = check_analysis(model, recipe, episodes, loss, least=least)
        adapter = smooth(recipe, order).adapter
        objective, losses = recipe.objective, loss
        if isinstance(episodes, Mapping):
            assert isinstance(losses, Mapping)
            problems = tuple(
                TaskProblem.of(
                    model, adapter, objective, checked_loss(losses[name], episode), episode, name
                )
                for name, episode in episodes.items()
            )
            data = tuple((e.support, e.query, e.task) for e in episodes.values())
        else:
            one = TaskProblem.of(model, adapter, objective, checked_loss(losses, episodes), episodes)  # type: ignore[arg-type]
            data = tuple(split_tasks((episodes.support, episodes.query, episodes.task)))
            problems = (one,) * len(data)
        return cls(task_names(episodes), detached(trainable(model)), problems, data)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The position of a task.

        Raises:
            ValueError: there is no such task.
        """
        if name not in self.names:
            raise ValueError(f"there is no task {name!r}; there are {', '.join(map(repr, self.names))}.")
        return self.names.index(name)

    def objective(self, task: int, params: Params) -> Tensor:
        """The objective of the recipe, whose gradient is that of the task."""
        return self.results(task, params, self.data[task])[0]

    def loss(self, task: int, params: Params) -> Tensor:
        """The query loss after adaptation."""
        return self.results(task, params, self.data[task])[1]

    def losses(self, params: Params) -> Tensor:
        """The query losses of all tasks `[T]`, in double precision on the CPU."""
        with torch.no_grad():
            values = [float(self.loss(task, params)) for task in range(len(self))]
        return torch.tensor(values, dtype=torch.float64)

    def mean_objective(self, params: Params) -> float:
        """The mean objective of all tasks."""
        with torch.no_grad():
            return sum(float(self.objective(task, params)) for task in range(len(self))) / len(self)

    def at(self, params: Params) -> TaskFunctions:
        """The same functions with other current values of the trainable parameters."""
        return replace(self, params={**self.params, **params})

    def adapt(self, task: int, params: Params) -> Params:
        """All parameters that the task uses."""
        support, _, ids = self.data[task]
        with self.seeded(task):
            return self.problems[task].adapt({**self.params, **params}, {}, support, ids)

    def measure(self, task: int, params: Params, part: Literal["support", "query"]) -> float:
        """The loss on the support or the query set with these parameters, without adaptation."""
        batch = self.data[task][("support", "query").index(part)]
        with torch.no_grad(), self.seeded(task):
            return float(self.problems[task].measure({**self.problems[task].frozen, **params}, batch))

    def output(self, task: int, params: Params, data: Any = None) -> Any:
        """The output of the adapted model on the query set; with `data`, on that of other data."""
        support, query, ids = self.data[task] if data is None else data
        with self.seeded(task):
            adapted = self.problems[task].adapt({**self.params, **params}, {}, support, ids)
            return self.problems[task].output(adapted, query[0])

    def gradient(self, task: int, params: Params) -> Params:
        """The gradient of the objective with respect to `params`, by plain autograd."""
        grads = gradient(lambda p: self.objective(task, p), params, differentiable=False)
        return {n: grads[n].to_dense() if n in grads else torch.zeros_like(p) for n, p in params.items()}

    def check_differentiable(self, task: int) -> None:
        """Raise ValueError if the objective of a task depends on no trainable parameter."""
        leaves = {name: param.clone().requires_grad_() for name, param in self.params.items()}
        with torch.enable_grad():
            check_depends(self.objective(task, leaves), self.names[task])

    def mean_gradient(self, params: Params) -> Params:
        """The gradient of the mean objective of all tasks."""
        total = {name: torch.zeros_like(param) for name, param in params.items()}
        for task in range(len(self)):
            total = {n: total[n] + g / len(self) for n, g in self.gradient(task, params).items()}
        return total

    def results(self, task: int, params: Params, data: Any) -> tuple[Tensor, Tensor]:
        """The objective and the query loss of a task with other data."""
        with self.seeded(task):
            return self.problems[task]({**self.params, **params}, {}, data)[:2]

    def seeded(self, task: int) -> AbstractContextManager[None]:
        """Context manager with the same random numbers in every evaluation of a task."""
        device = next((p.device for p in self.params.values() if p.is_cuda), None)
        return seeded(task, device)
