"""The outer loop's one line: from episodes to `.grad`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .checks import check_direction, check_episodes, check_finite
from .engines import Auto, Engine, TaskFunction, feature_rows, named_rows
from .episode import Episode
from .functional import Params, trainable, trainable_and_frozen
from .recipes import Recipe
from .task import Loss

DEFAULT = Auto()  # one for all calls, because it remembers


@dataclass(frozen=True)
class Outcome:
    """What `meta_backward` reports.

    Attributes:
        losses: the query loss of each task after adaptation, `[T]` (whatever the objective was).
        tasks: the tasks' names, in the order of `losses`; None for alike tasks.
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
    """Adapt to every task, differentiate through it, aggregate the rows, add the result to `.grad`.

    Stands where `loss.backward()` stood: `zero_grad()` before it, `optimizer.step()` after it. In
    formulas, with theta the shared parameters:

        phi_t = adapter(theta, support_t);   g_t = d objective(phi_t, query_t) / d theta
        theta.grad += aggregator([L_1 ... L_T], [g_1 ... g_T])

    What a task has to itself gets the plain gradient and no aggregation. For alike tasks that is what
    the adapter owns (a table of heads, learned rates): the gradient of the mean objective. For named
    tasks it is every parameter that some task does not use, its head above all: the gradient of the
    objectives of the tasks that use it, so that a head learns as fast as it would alone.

    Args:
        model: any module; it is not changed but for `.grad`.
        recipe: adapter, aggregator and objective, and where the rows are taken.
        episodes: T alike tasks in one `Episode`, or a dict of named tasks. Named tasks whose `query.x`
            is one and the same object share one pass through the model.
        loss: `loss(output, y) -> scalar`; a dict of them for named tasks.
        engine: how alike tasks are run; `Auto()`, where None: the engine that the first steps show to be
            the fastest, remembered for each model and shape. Named tasks differ in shape, and run one
            by one.

    Raises:
        ValueError: shapes, devices, prefixes, ids, labels or modules that cannot work; an aggregator that
            answers with zero because the gradient of some task is zero.
        FloatingPointError: a loss or gradient is not finite; the message names tasks and inner step.
            In either case no `.grad` has been touched.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(4, torch.Generator().manual_seed(0))
    >>> meta_backward(model, recipes.maml(steps=2, lr=0.01), episodes, family.loss).losses.shape
    torch.Size([4])
    """
    check_episodes(model, recipe.adapter, episodes, loss)
    (shared, constants), own = trainable_and_frozen(model), trainable(recipe.adapter)
    if not shared and not own:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; call requires_grad_(True).")
    if isinstance(episodes, Mapping):
        assert isinstance(loss, Mapping)
        functions = {
            name: _function(model, recipe, loss[name], episode, name, constants)
            for name, episode in episodes.items()
        }
        found = (
            named_rows(functions, shared, own)
            if recipe.at is None
            else feature_rows(functions, shared, recipe.at)
        )
        evaluations = sum(function.gradient_evaluations for function in functions.values())
    else:
        assert not isinstance(loss, Mapping)
        if recipe.at is not None:
            raise ValueError(
                f"at={recipe.at!r} is for named tasks that share one input; alike tasks have examples of"
                " their own, whose features cannot be aggregated. Use at=None."
            )
        engine = DEFAULT if engine is None else engine
        engine.check(model)
        function = _function(model, recipe, loss, episodes, None, constants)
        found = engine.rows(function, shared, own, function.data)
        evaluations = function.gradient_evaluations * episodes.num_tasks
    check_finite(model, recipe.adapter, episodes, loss, found)
    if found.shared:  # a frozen model has none: all that is learned is the adapter's
        columns = [rows.reshape(len(rows), -1) for rows in found.shared.values()]
        matrix = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
        direction = recipe.aggregator(found.losses, matrix)
        sizes = [rows[0].numel() for rows in found.shared.values()]
        pulled = found.pull(dict(zip(found.shared, direction.split(sizes))))
        check_direction(recipe.aggregator, episodes, matrix, direction, pulled)
        for name, gradient in pulled.items():
            _accumulate(shared[name], gradient)
    for params, gradients in ((shared, found.private), (own, found.own)):
        for name, gradient in gradients.items():
            _accumulate(params[name], gradient)
    return Outcome(found.losses, tuple(episodes) if isinstance(episodes, Mapping) else None, evaluations)


def _function(
    model: nn.Module,
    recipe: Recipe,
    loss: Loss,
    episode: Episode,
    name: str | None,
    constants: Params,
) -> TaskFunction:
    return TaskFunction(model, recipe.adapter, recipe.objective, loss, episode, name, constants)


def _accumulate(param: Tensor, gradient: Tensor) -> None:
    gradient = gradient.view(param.shape).to(param.dtype)
    if param.grad is None:
        param.grad = gradient.clone()
    else:
        param.grad += gradient
