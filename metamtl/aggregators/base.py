"""Base classes of aggregators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Combined(NamedTuple):
    """The result of `Aggregator.combine`.

    Attributes:
        direction: the update direction `[n]`; None if no gradients were passed.
        weights: the weights `[T]` of the losses, in the order of the batch; None for an aggregator that
            combines gradients. A task's own parameters receive `weights[t]` times its gradient.
    """

    direction: Tensor | None
    weights: Tensor | None


class Aggregator(nn.Module, ABC):
    """Base class. Combines losses `[T]` and per-task gradients `[T, n]` into an update direction `[n]`.

    `meta_backward` calls `combine`; a subclass defines `forward`, or `weights` if it is a `LossWeighting`.
    State and fixed weights belong to tasks, not to positions: the first call of `combine` stores the names
    of the tasks, and later batches are permuted into this order.

    Attributes:
        scale: the direction for T equal gradients `g` at the first call with losses of 1: `g` ("mean"),
            `T g` ("sum"), or as the docstring states ("own"). `Rescaled` equalizes the norms.
        reads: what the result depends on. "losses": `sum_t w_t g_t`, with weights that depend only on the
            losses. "gramian": with weights that depend on the losses and on `J J^T`. "columns": every entry
            of the direction depends only on that column of the gradients. "rows": the whole matrix.
        observes: whether `combine` receives the gradients even if `reads` is "losses".
        state_names: names of the buffers that hold state. They are None until the first call determines
            shape, dtype and device, and are replaced, never written in place. They are part of the state
            dict, and training resumes from it bit for bit.
        by_parameter: whether there is state for each of the n columns. Such an aggregator needs gradients
            at parameters, because gradients at features belong to other examples at every call.
        per_task: whether a state or an option belongs to a single task.
        tasks: the names of the tasks of the state; `()` for tasks without names, None before the first
            call.
        num_tasks: the number of tasks of the state; None before the first call.
    """

    scale: str = "own"
    reads: str = "rows"
    observes: bool = False
    state_names: ClassVar[tuple[str, ...]] = ()
    by_parameter: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.name = type(self).__name__  # in messages
        self.per_task = bool(self.state_names)
        self.tasks: tuple[str, ...] | None = None
        self.num_tasks: int | None = None
        for name in self.state_names:
            self.register_buffer(name, None)

    @abstractmethod
    def forward(self, losses: Tensor, gradients: Tensor) -> Tensor:
        """The update direction `[n]`, which takes the place of the gradient in the optimizer step."""

    def __call__(self, losses: Tensor, gradients: Tensor) -> Tensor:
        """Call `forward`; with state for each task the number of tasks must not change."""
        self._check_number(None, len(losses))
        direction = super().__call__(losses, gradients)
        if self.per_task:
            self.num_tasks = len(losses)
        return direction

    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor | None:
        """The weights of the losses `[T]`; None for an aggregator that combines gradients."""
        return None

    def combine(
        self, losses: Tensor, gradients: Tensor | None, tasks: Sequence[str] | None = None
    ) -> Combined:
        """Compute the direction, and the weights of the losses if the aggregator weights losses.

        Args:
            losses: `[T]`.
            gradients: `[T, n]`; may be None if `reads` is "losses".
            tasks: the names of the tasks, in the order of `losses`; None for a meta-batch.

        Raises:
            ValueError: the tasks, or their number, differ from those of the state.
            TypeError: `reads` is "losses", but `weights` returns None.
        """
        if gradients is None and self.reads != "losses":
            raise ValueError(f"{self.name} depends on the gradients of the tasks; pass gradients [T, n].")
        order = self.arrange(tasks, len(losses))
        if order is not None:
            losses, gradients = losses[order], None if gradients is None else gradients[order]
        weights = self.weights(losses, gradients)
        if weights is None and gradients is None:
            raise TypeError(
                f"{self.name} has reads='losses' but defines no weights; derive it from LossWeighting and"
                " define weights(), or set reads='rows'."
            )
        if weights is None:
            direction: Tensor | None = self(losses, gradients)  # type: ignore[arg-type]
        else:
            direction = None if gradients is None else weighted(weights, gradients)
            if order is not None:
                weights = torch.empty_like(weights).index_put((torch.tensor(order),), weights)
        self.bind(tasks, len(losses))
        return Combined(direction, weights)

    def arrange(self, tasks: Sequence[str] | None, num_tasks: int) -> list[int] | None:
        """The permutation of a batch into the order of the state; None if the order is already the same.

        Raises:
            ValueError: the tasks, or their number, differ from those of the state.
        """
        self._check_number(tasks, num_tasks)
        if not self.per_task or self.tasks is None or tuple(tasks or ()) == self.tasks:
            return None
        if not tasks or not self.tasks:
            state = f"the tasks {', '.join(self.tasks)}" if self.tasks else "tasks without names"
            batch = f"the tasks {', '.join(tasks)}" if tasks else "a meta-batch of tasks without names"
            raise ValueError(f"{self.name} has a state for {state}; this batch has {batch}. {_REMEDY}")
        if set(tasks) != set(self.tasks):
            raise ValueError(self._difference(tasks))
        return [list(tasks).index(name) for name in self.tasks]

    def bind(self, tasks: Sequence[str] | None, num_tasks: int) -> None:
        """Store which tasks the state belongs to."""
        if self.per_task:
            self.num_tasks = num_tasks
            self.tasks = tuple(tasks or ()) if self.tasks is None else self.tasks

    def expect(self, num_tasks: int, tasks: Sequence[str] | None = None) -> None:
        """Set the number of tasks, or their names, if an option has one entry for each task."""
        self.per_task, self.num_tasks = True, num_tasks
        self.tasks = None if tasks is None else tuple(tasks)

    def _check_number(self, tasks: Sequence[str] | None, num_tasks: int) -> None:
        if not self.per_task or self.num_tasks in (None, num_tasks):
            return
        if tasks and self.tasks:
            raise ValueError(self._difference(tasks))
        names = f" ({', '.join(tasks)})" if tasks else ""
        raise ValueError(
            f"{self.name} has weights or a state for {self.num_tasks} tasks; this batch has"
            f" {num_tasks}{names}. {_REMEDY}"
        )

    def _difference(self, tasks: Sequence[str]) -> str:
        names = self.tasks or ()
        missing = [name for name in names if name not in tasks]
        unknown = [name for name in tasks if name not in names]
        parts = [f"without {', '.join(missing)}"] if missing else []
        parts += [f"with the unknown {', '.join(unknown)}"] if unknown else []
        return (
            f"{self.name} has a state for each of the tasks {', '.join(names)}; this batch has"
            f" {', '.join(tasks)}: {' and '.join(parts)}. {_REMEDY}"
        )

    def get_state(self, name: str, start: Tensor) -> Tensor:
        """The state `name`, or `start` at the first call."""
        state = getattr(self, name)
        if state is None:
            return start
        if state.shape != start.shape:
            raise ValueError(
                f"{self.name} has a state {name} of shape {list(state.shape)} from earlier calls, but"
                f" these gradients need {list(start.shape)}. {_REMEDY}"
            )
        return state.to(start)

    def snapshot(self) -> Any:
        """The state to pass to `restore`: buffers, parameters with their `.grad`, and plain attributes.

        Buffers in `state_names` are referenced, because they are never written in place; others are copied.
        """
        states = []
        for module in self.modules():
            references = module.state_names if isinstance(module, Aggregator) else ()
            buffers = {
                name: buffer if buffer is None or name in references else buffer.clone()
                for name, buffer in module._buffers.items()
            }
            params = {
                name: (param, param.detach().clone(), None if param.grad is None else param.grad.clone())
                for name, param in module._parameters.items()
                if param is not None
            }
            plain = {
                k: v for k, v in vars(module).items() if k not in ("_buffers", "_parameters", "_modules")
            }
            states.append((module, buffers, params, plain))
        return states

    def restore(self, snapshot: Any) -> None:
        """Restore the state of a snapshot."""
        for module, buffers, params, plain in snapshot:
            module._buffers.update(buffers)
            for param, value, gradient in params.values():
                param.data, param.grad = value, gradient
            vars(module).update(plain)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """A context that restores the state if an exception is raised in it."""
        snapshot = self.snapshot()
        try:
            yield
        except BaseException:
            self.restore(snapshot)
            raise

    def get_extra_state(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "num_tasks": self.num_tasks}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.tasks, self.num_tasks = state["tasks"], state["num_tasks"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A buffer that is None cannot be loaded; allocate it first.
        for name in self.state_names:
            state = state_dict.get(prefix + name)
            setattr(self, name, None if state is None else torch.empty_like(state))
        super()._load_from_state_dict(state_dict, prefix, *args)


_REMEDY = "Use one aggregator for one set of tasks, or one without a state, such as Mean."


class LossWeighting(Aggregator):
    """Base class of aggregators that weight losses: `sum_t w_t g_t`, the gradient of `sum_t w_t L_t`.

    The weights are constants in the derivative. They apply to every parameter: `meta_backward` uses them
    for shared parameters, task-specific parameters (heads) and the parameters of the adapter.
    """

    reads = "losses"

    @abstractmethod
    def weights(self, losses: Tensor, gradients: Tensor | None = None) -> Tensor:
        """Compute the weights `[T]` of losses `[T]`, and update the state.

        `gradients` `[T, n]` may be None if `reads` is "losses".
        """

    def forward(self, losses: Tensor, gradients: Tensor) -> Tensor:
        return weighted(self.weights(losses, gradients), gradients)


def weighted(weights: Tensor, gradients: Tensor) -> Tensor:
    """`sum_t w_t g_t`."""
    return weights.to(gradients) @ gradients.detach()


def check_positive(method: str, losses: Tensor) -> None:
    """Raise ValueError for losses of zero or less, whose inverse or logarithm a method needs."""
    bad = (~(losses > 0)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{method} needs positive losses, but those of tasks {bad} are {losses[bad].tolist()}; add a"
            " constant to these losses, or use an aggregator that depends only on the gradients."
        )
