"""The outer loop's one line: from episodes to `.grad`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .engines import Auto, Engine, TaskGradients, TaskProblem, combine, named_gradients
from .episode import Episode
from .functional import Params, trainable
from .losses import Loss
from .recipes import Recipe
from .validation import check_call, check_direction, check_features, check_finite, checked_loss

DEFAULT = Auto()  # one for all calls, because it remembers what is fast


@dataclass(frozen=True)
class Outcome:
    """What `meta_backward` reports.

    Attributes:
        losses: the query loss of each task after adaptation, `[T]` (whatever the objective was).
        tasks: the names of the tasks, in the order of `losses`; None for a meta-batch.
        gradient_evaluations: backward passes over one task's support or query set, summed over tasks.
    """

    losses: Tensor
    tasks: tuple[str, ...] | None
    gradient_evaluations: int

    @property
    def loss(self) -> float:
        """The mean of `losses`, as a number (waits for the device)."""
        return float(self.losses.mean())


def meta_backward(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode | Mapping[str, Episode],
    loss: Loss | Mapping[str, Loss],
    *,
    engine: Engine | None = None,
) -> Outcome:
    """Adapt to every task, differentiate through it, aggregate the gradients, add the result to `.grad`.

    It replaces `loss.backward()`: `zero_grad()` before it, `optimizer.step()` after it. With theta the
    shared parameters:

        phi_t = adapter(theta, support_t);   g_t = d objective(phi_t, query_t) / d theta
        theta.grad += aggregator([L_1 ... L_T], [g_1 ... g_T])

    An aggregator that weights losses is the gradient of the weighted loss, `sum_t w_t L_t`, for every
    parameter: for a task's own head, and for the adapter's parameters, too. An aggregator that combines
    gradients acts on the parameters that all tasks share; of a named task's own parameters, such as its
    head, `.grad` receives the gradient of the task's objective, and of the adapter's parameters that of the
    mean objective.

    Args:
        model: any module; only `.grad` changes.
        recipe: adapter, aggregator and objective, and where gradients are taken.
        episodes: T tasks in one `Episode`, or a dict of named tasks. Named tasks whose `query.x` is one and
            the same object share one pass through the model.
        loss: `loss(output, y) -> scalar`; a dict of them for named tasks.
        engine: how a meta-batch is run; if None, `Auto()`: the engine that the first steps show to be the
            fastest. Named tasks differ in shape and run one by one, so they take `Loop()` or `Auto()` only.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes, devices, prefixes, ids, labels or modules that cannot work; an aggregator whose
            result is zero because the gradient of a task is zero.
        FloatingPointError: a loss or gradient is not finite; the message names tasks and inner step.
            In all cases neither `.grad` nor the aggregator's state has changed.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(4, torch.Generator().manual_seed(0))
    >>> meta_backward(model, recipes.maml(steps=2, lr=0.01), episodes, family.loss).losses.shape
    torch.Size([4])
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "meta_backward needs gradients, and torch.inference_mode() records none; call it outside."
        )
    episodes = check_call(model, recipe, episodes, loss, engine)
    check_features(recipe, episodes)
    losses: Any = loss
    shared, own = trainable(model), trainable(recipe.adapter)
    if not shared and not own:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; call requires_grad_(True).")
    if isinstance(episodes, Mapping):
        problems = {
            name: TaskProblem.of(
                model, recipe.adapter, recipe.objective, checked_loss(losses[name], episode), episode, name
            )
            for name, episode in episodes.items()
        }
        grads = named_gradients(problems, episodes, shared, own, recipe.layer)
    else:
        engine = DEFAULT if engine is None else engine
        engine.check(model)
        problem = TaskProblem.of(
            model, recipe.adapter, recipe.objective, checked_loss(losses, episodes), episodes
        )
        data = (episodes.support, episodes.query, episodes.task)
        grads = engine.gradients(problem, shared, own, data)
    check_finite(model, recipe.adapter, episodes, loss, grads)
    names = tuple(episodes) if isinstance(episodes, Mapping) else None
    _accumulate(shared, own, recipe, episodes, grads, names)
    return Outcome(grads.losses, names, grads.evaluations)


def _accumulate(
    shared: Params, own: Params, recipe: Recipe, episodes: Any, grads: TaskGradients, names: Any
) -> None:
    """Aggregate, and add the result to `.grad`; nothing has changed if an error is raised."""
    with recipe.aggregator.restored_on_error():
        directions, weights = _aggregate(recipe, episodes, grads, names)
    pairs = [(shared[name], gradient) for name, gradient in directions.items()]
    for name, by_task in grads.task_specific.items():
        parts = [g if weights is None else weights[task].to(g) * g for task, g in by_task.items()]
        pairs.append((shared[name], parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)))
    for name, rows in grads.adapter_params.items():
        if weights is None:
            gradient = grads.exchange.mean(rows)
        else:
            own_weights = grads.exchange.select(weights).to(rows)
            gradient = grads.exchange.sum(torch.tensordot(own_weights, rows, 1))
        pairs.append((own[name], gradient))
    if not pairs:
        return
    # As backward() does it, so that the hooks of parameters are called, each once.
    tensors = [param for param, _ in pairs]
    torch.autograd.backward(tensors, [g.reshape(p.shape).to(p.dtype) for p, g in pairs])


def _aggregate(
    recipe: Recipe, episodes: Any, grads: TaskGradients, names: tuple[str, ...] | None
) -> tuple[Params, Tensor | None]:
    """The gradients of the shared parameters, and the weights of the losses if these are weighted."""
    aggregator = recipe.aggregator
    if not grads.shared:  # a frozen model: only the adapter learns, or features are not shared
        only_losses = aggregator.reads == "losses"
        return {}, aggregator.combine(grads.losses, None, names).weights if only_losses else None
    columns = [rows.reshape(len(rows), rows.shape[1:].numel()) for rows in grads.shared.values()]
    matrix = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
    combined = combine(aggregator, grads.losses, matrix, names, grads.exchange)
    assert combined.direction is not None
    sizes = [rows.shape[1:].numel() for rows in grads.shared.values()]
    directions = grads.to_parameters(dict(zip(grads.shared, combined.direction.split(sizes))))

    def zero_rows() -> Tensor:
        return grads.exchange.gather(~matrix.any(1))

    check_direction(aggregator, episodes, zero_rows, combined.direction, directions)
    return directions, combined.weights
