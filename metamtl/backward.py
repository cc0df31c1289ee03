"""`meta_backward`: compute `.grad` from episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .aggregators import Aggregator
from .aggregators.base import weighted
from .engines import (
    Auto,
    Engine,
    TaskGradients,
    TaskGroup,
    TaskProblem,
    combine,
    example_exchange,
    named_gradients,
)
from .engines.exchange import LOCAL
from .episode import Episode
from .functional import Params, trainable
from .losses import Loss
from .recipes import Recipe
from .validation import (
    check_direction,
    check_features,
    check_finite,
    check_tasks,
    checked_loss,
    missing_derivatives_explained,
)

DEFAULT = Auto()  # shared by all calls, because it stores which engine is fastest


@dataclass(frozen=True)
class Outcome:
    """The result of `meta_backward`.

    Attributes:
        losses: the query loss of each task after adaptation, `[T]`, independent of the objective; the loss
            on the support set for tasks without queries.
        tasks: the names of the tasks, in the order of `losses`; None for a meta-batch.
    """

    losses: Tensor
    tasks: tuple[str, ...] | None

    @property
    def loss(self) -> float:
        """The mean of `losses` as a float (synchronizes with the device)."""
        return float(self.losses.mean())


def meta_backward(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode | list[Episode] | Mapping[str, Episode],
    loss: Loss | Mapping[str, Loss],
    *,
    engine: Engine | None = None,
) -> Outcome:
    """Adapt to every task, differentiate through the adaptation, aggregate, and add the result to `.grad`.

    It replaces `loss.backward()`: call `zero_grad()` before it and `optimizer.step()` after it. With theta
    the shared parameters:

        phi_t = adapter(theta, support_t);   g_t = d objective(phi_t, query_t) / d theta
        theta.grad += aggregator([L_1 ... L_T], [g_1 ... g_T])

    With an aggregator that weights losses, every parameter receives the gradient of the weighted loss,
    `sum_t w_t L_t`, including task-specific heads and the adapter's parameters. An aggregator that combines
    gradients acts only on the parameters that all tasks share. Task-specific parameters, such as heads,
    then receive the gradient of their task's objective, and the adapter's parameters the gradient of the
    mean objective.

    Args:
        model: any module; only `.grad` changes.
        recipe: adapter, aggregator and objective, and the layer at which gradients are taken.
        episodes: T tasks in one `Episode`; tasks with different numbers of ways, shots or queries in a list
            of episodes, whose tasks of equal shape run together; or a dict of named tasks. Named tasks
            whose `query.x` is the same object share one forward pass through the model.
        loss: `loss(output, y) -> scalar`; for named tasks a dict of such functions.
        engine: how a meta-batch is run; if None, `Auto()`, which measures the engines in the first steps
            and uses the fastest. Named tasks differ in shape and run one by one, so they take only
            `Loop()`, `Auto()` and `Sharded()`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes, devices, prefixes, ids, labels or modules do not work together, or the
            aggregator's result is zero because the gradient of a task is zero.
        FloatingPointError: a loss or gradient is not finite; the message names tasks and inner step.
            In all cases `.grad` and the state of the aggregator are unchanged.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(4, torch.Generator().manual_seed(0))
    >>> meta_backward(model, recipes.maml(steps=2, lr=0.01), episodes, family.loss).losses.shape
    torch.Size([4])
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "meta_backward needs gradients, but torch.inference_mode() records none; call it outside."
        )
    exchange, losses = example_exchange(engine, model, episodes), cast(Any, loss)

    def problem(episode: Episode, name: str | None = None) -> TaskProblem:
        checked = checked_loss(losses if name is None else losses[name], episode)
        return TaskProblem.of(model, recipe.adapter, recipe.objective, checked, episode, name)

    with exchange.together():
        checked = check_tasks(model, recipe, episodes, loss, engine)
        check_features(recipe, checked)
        if recipe.schedule is not None:
            raise ValueError(
                "the recipe changes during the training; pass recipe.at(step), with the number of the outer"
                " step."
            )
        shared, adapter_params = trainable(model), trainable(recipe.adapter)
        if not shared and not adapter_params:
            raise ValueError(
                f"{type(model).__name__} has no trainable parameter; call requires_grad_(True)."
            )
        named = isinstance(checked, Mapping)
        problems = {name: problem(checked[name], name) for name in checked} if named else {}
    if named:
        with missing_derivatives_explained():
            grads = named_gradients(problems, checked, shared, adapter_params, recipe.layer, exchange)
    else:
        engine = DEFAULT if engine is None else engine
        engine.check(model)
        groups = [
            TaskGroup(problem(episode), (episode.support, episode.query, episode.task), positions)
            for episode, positions in zip(checked.groups, checked.positions)
        ]
        with missing_derivatives_explained():
            grads = engine.group_gradients(groups, shared, adapter_params)
    check_finite(model, recipe.adapter, checked, loss, grads)
    names = tuple(checked) if named else None
    _accumulate(shared, adapter_params, recipe, checked, grads, names)
    return Outcome(grads.losses, names)


def _accumulate(
    shared: Params, adapter_params: Params, recipe: Recipe, episodes: Any, grads: TaskGradients, names: Any
) -> None:
    """Aggregate and add the result to `.grad`; if an error is raised, nothing has changed."""
    aggregator, exchange = recipe.aggregator, grads.exchange
    with aggregator.restored_on_error():
        directions, weights, partial = _aggregate(aggregator, grads, names)
        aggregated = torch.cat(list(directions.values())) if directions else None
        if aggregated is not None:
            directions = grads.to_parameters(directions)
        # Every process has a part of these gradients; their sum over the processes is taken at once.
        bottom = [name for name in shared if name not in grads.task_specific]
        summed = (bottom if exchange.by_columns else list(directions)) if partial else []
        parts = [(shared[name], directions.get(name)) for name in summed]
        parts += _unaggregated(shared, adapter_params, grads, weights)
        sums = exchange.sum_each([gradient for _, gradient in parts], [param for param, _ in parts])
        if partial:
            directions = {name: total for name, total in zip(summed, sums) if total is not None}
        if aggregated is not None:
            check_direction(aggregator, episodes, grads, aggregated, directions)
    others = zip(parts[len(summed) :], sums[len(summed) :])
    pairs = [(shared[name], gradient) for name, gradient in directions.items()]
    pairs += [(param, total) for (param, _), total in others if total is not None]
    if not pairs:
        return
    # Use backward(), so that every hook of a parameter is called once.
    tensors = [param for param, _ in pairs]
    torch.autograd.backward(tensors, [g.reshape(p.shape).to(p.dtype) for p, g in pairs])


def _aggregate(
    aggregator: Aggregator, grads: TaskGradients, names: tuple[str, ...] | None
) -> tuple[Params, Tensor | None, bool]:
    """The directions, the weights of the losses, and whether the directions are parts of a sum."""
    matrices, exchange = grads.matrices(), grads.exchange
    if aggregator.reads == "losses":
        observed = grads.matrix() if matrices and aggregator.observes else None
        weights = aggregator.combine(grads.losses, observed, names).weights
        assert weights is not None
        own_weights = exchange.select(weights)
        directions = {name: weighted(own_weights, matrix) for name, matrix in matrices.items()}
        return directions, weights, bool(matrices) and exchange is not LOCAL
    if not matrices:  # only the adapter is trained, or no features are shared
        return {}, None, False
    combined, partial = combine(aggregator, grads.losses, grads.matrix(), names, exchange)
    assert combined.direction is not None
    parts = combined.direction.split([matrix.shape[1] for matrix in matrices.values()])
    return dict(zip(matrices, parts)), combined.weights, partial


def _unaggregated(
    shared: Params, adapter_params: Params, grads: TaskGradients, weights: Tensor | None
) -> list[tuple[Tensor, Tensor | None]]:
    """The gradients of the parameters of single tasks and of the adapter, on the data of this process."""
    pairs: list[tuple[Tensor, Tensor | None]] = []
    for name, by_task in grads.task_specific.items():
        parts = [g if weights is None else weights[task].to(g) * g for task, g in by_task.items()]
        pairs.append((shared[name], parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)))
    for name, rows in grads.adapter_params.items():
        if weights is None:
            pairs.append((adapter_params[name], rows.sum(0) / len(grads.losses)))
        else:
            pairs.append(
                (adapter_params[name], torch.tensordot(grads.exchange.select(weights).to(rows), rows, 1))
            )
    return pairs
