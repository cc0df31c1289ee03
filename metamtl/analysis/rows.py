"""Rows of the Jacobian: for tasks, in chunks, or for single examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..backward import DEFAULT
from ..engines import Engine, TaskGradients, TaskProblem, named_gradients
from ..episode import Batch, Episode
from ..functional import Params, trainable
from ..recipes import Recipe
from ..validation import check_finite, checked_loss
from .arguments import Episodes, Losses, task_names


@dataclass(frozen=True)
class Rows:
    """R labeled rows: losses `[R]` and gradients `[R, *shape]` by name."""

    labels: tuple[str, ...]
    losses: Tensor
    rows: Params

    def map(self, function: Callable[[Tensor, str], Tensor]) -> Rows:
        """The rows as matrices `[R, n]`, transformed by `function(matrix, name)`."""
        return replace(
            self, rows={name: function(rows.flatten(1), name) for name, rows in self.rows.items()}
        )

    def select(self, model: nn.Module, prefixes: Mapping[str, tuple[str, ...]] | None) -> Rows:
        """Only the columns of the layers in `prefixes`."""
        if prefixes is None:
            return self
        for prefix, names in prefixes.items():
            if not any(name in self.rows for name in names):
                raise ValueError(
                    f"layers={prefix!r} has no parameter that all tasks share; the shared ones are"
                    f" {', '.join(list(self.rows)[:10])}."
                )
        return replace(
            self, rows={n: self.rows[n] for ns in prefixes.values() for n in ns if n in self.rows}
        )

    @staticmethod
    def concatenate(parts: list[Rows]) -> Rows:
        """The rows of all parts."""
        labels = tuple(label for part in parts for label in part.labels)
        rows = {
            name: torch.cat([part.rows[name] for part in parts]) if len(parts) > 1 else parts[0].rows[name]
            for name in parts[0].rows
        }
        return Rows(labels, torch.cat([part.losses for part in parts]), rows)


def exact_rows(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    examples: bool,
    chunk: int | None,
    engine: Engine | None,
) -> Iterator[Rows]:
    """Yield the rows of all tasks, or of all query examples, in chunks."""
    if isinstance(episodes, Mapping):
        yield from _named_rows(model, recipe, episodes, loss, examples)
        return
    labels = task_names(episodes)
    if examples:
        count = _num_examples(episodes.query, 1)
        labels = tuple(f"{name}[{i}]" for name in labels for i in range(count))
    for part in torch.arange(len(labels)).split(chunk or len(labels)):
        if examples:
            batch = _single_examples(episodes, part // count, part % count)
        else:
            batch = episodes if len(part) == len(labels) else episodes[part.to(_device(episodes))]
        yield _meta_batch(model, recipe, batch, loss, engine, tuple(labels[i] for i in part.tolist()))


def _meta_batch(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode,
    loss: Any,
    engine: Engine | None,
    labels: tuple[str, ...],
) -> Rows:
    engine = DEFAULT if engine is None else engine
    engine.check(model)
    problem = TaskProblem.of(
        model, recipe.adapter, recipe.objective, checked_loss(loss, episodes), episodes
    )
    with _unchanged_generators(model):
        data = (episodes.support, episodes.query, episodes.task)
        grads = engine.gradients(problem, trainable(model), {}, data)
    check_finite(model, recipe.adapter, episodes, loss, grads)
    return _gathered(labels, grads)


def _named_rows(
    model: nn.Module, recipe: Recipe, episodes: Mapping[str, Episode], loss: Any, examples: bool
) -> Iterator[Rows]:
    def compute(part: Mapping[str, Episode]) -> TaskGradients:
        problems = {
            name: TaskProblem.of(
                model, recipe.adapter, recipe.objective, checked_loss(loss[name], episode), episode, name
            )
            for name, episode in part.items()
        }
        with _unchanged_generators(model):
            grads = named_gradients(problems, part, trainable(model), {}, recipe.layer)
        check_finite(model, recipe.adapter, part, loss, grads)
        return grads

    grads = compute(episodes)
    if not examples:
        yield _gathered(tuple(episodes), grads)
        return
    if recipe.layer is not None:
        raise ValueError(
            f"per='example' with layer={recipe.layer!r}: the features of one example are not those of"
            " another; use layer=None, or per='task'."
        )
    for name, episode in episodes.items():
        for i in range(_num_examples(episode.query, 0)):
            one = replace(episode, query=_examples(episode.query, 0, slice(i, i + 1)))
            row = compute({name: one})
            rows = {
                n: row.shared.get(n, torch.zeros_like(all_rows[:1])) for n, all_rows in grads.shared.items()
            }
            yield Rows((f"{name}[{i}]",), row.losses, rows)


def _gathered(labels: tuple[str, ...], grads: TaskGradients) -> Rows:
    """The rows of all processes."""
    return Rows(labels, grads.losses, {n: grads.exchange.full(rows) for n, rows in grads.shared.items()})


def _unchanged_generators(model: nn.Module) -> Any:
    device = next((p.device for p in model.parameters() if p.is_cuda), None)
    return torch.random.fork_rng(devices=[] if device is None else [device])


def _device(episodes: Episode) -> torch.device:
    return next(leaf.device for leaf in tree_leaves(tuple(episodes.query)) if isinstance(leaf, Tensor))


def _num_examples(query: Batch, axis: int) -> int:
    """The number of query examples of a task: the length of the targets' example axis."""
    counts = {y.shape[axis] for y in tree_leaves(query.y) if isinstance(y, Tensor) and y.dim() > axis}
    if len(counts) != 1:
        raise ValueError(
            f"per='example' needs targets with one example axis, but their lengths are {sorted(counts)};"
            " use per='task'."
        )
    return int(counts.pop())


def _examples(batch: Batch, axis: int, index: slice) -> Batch:
    """The examples at `index` of tensors that have an example axis; other tensors are unchanged."""
    count, position = _num_examples(batch, axis), (slice(None),) * axis + (index,)

    def take(leaf: Any) -> Any:
        has_axis = isinstance(leaf, Tensor) and leaf.dim() > axis and leaf.shape[axis] == count
        return leaf[position] if has_axis else leaf

    return Batch(tree_map(take, batch.x), tree_map(take, batch.y))


def _single_examples(episodes: Episode, tasks: Tensor, examples: Tensor) -> Episode:
    """A meta-batch in which each task is one query example, with the support set of its task."""
    tasks, examples = tasks.to(_device(episodes)), examples.to(_device(episodes))
    batch, count = episodes[tasks], _num_examples(episodes.query, 1)

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() < 2 or leaf.shape[1] != count:
            return leaf
        return leaf[torch.arange(len(leaf), device=leaf.device), examples].unsqueeze(1)

    return replace(batch, query=Batch(tree_map(take, batch.query.x), tree_map(take, batch.query.y)))
