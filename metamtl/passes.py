"""`backward_passes`: the cost of a step, measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._pytree import tree_leaves

from .engines import Loop, TaskProblem, named_gradients
from .engines.base import index_task
from .episode import Episode
from .functional import trainable
from .functional.random_state import RandomState, foreign_state
from .losses import Loss
from .recipes import Recipe
from .validation import check_call, checked_loss


def backward_passes(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episode | Mapping[str, Episode],
    loss: Loss | Mapping[str, Loss],
) -> int | dict[str, int]:
    """Number of backward passes that `meta_backward` needs for one task, measured in a run of that task.

    A backward pass is one traversal by autograd of the graph of one forward pass of the model, over a
    support or a query set. Traversals of the inner and the outer loop count, whoever starts them: the
    library, another library, or an adapter that calls `torch.autograd.grad` itself. For K inner steps,
    first-order MAML has K + 1; MAML has 2K + 1, because the outer loop traverses each inner step again.
    Recomputed passes count. A forward pass without a backward pass does not count.

    The traversals of each module of the model, and those of the outputs that the loss receives, are
    counted; the largest count is the result. So a pass through a part of the model, such as the features
    of `Prototype`, or the head of ANIL, counts as a pass. The task runs once under `engines.Loop()`,
    without compiled code. Nothing changes: no `.grad`, no state, no random number generator.

    Args:
        model, recipe, loss: as in `meta_backward`.
        episodes: a meta-batch, of which the first task runs, or a dict of named tasks.

    Returns:
        The number of passes of one task of a meta-batch; for named tasks, those of each task.

    Raises:
        TypeError, ValueError, RuntimeError: the errors of `meta_backward` for the same arguments.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(4, torch.Generator().manual_seed(0))
    >>> backward_passes(model, recipes.fomaml(steps=3), episodes, family.loss)
    4
    >>> backward_passes(model, recipes.maml(steps=3), episodes, family.loss)
    7
    """
    episodes = check_call(model, recipe, episodes, loss, Loop())
    losses: Any = loss
    if isinstance(episodes, Mapping):
        return {
            name: _measured(model, recipe, episode, losses[name], name)
            for name, episode in episodes.items()
        }
    return _measured(model, recipe, episodes, losses, None)


def _measured(model: nn.Module, recipe: Recipe, episode: Episode, loss: Loss, name: str | None) -> int:
    """The number of passes of one named task, or of the first task of a meta-batch."""
    count = _Traversals(model)
    task_loss = count.of_loss(checked_loss(loss, episode))
    problem = TaskProblem.of(model, recipe.adapter, recipe.objective, task_loss, episode, name)
    shared, own = trainable(model), trainable(recipe.adapter)
    cuda = next((param.device for param in model.parameters() if param.is_cuda), None)
    with (
        RandomState(cuda, foreign_state()).restored(),
        torch.compiler.set_stance("force_eager"),
        count.of_modules(),
    ):
        if name is None:
            first = index_task((episode.support, episode.query, episode.task), slice(0, 1))
            Loop().gradients(problem, shared, own, first)
        else:
            named_gradients({name: problem}, {name: episode}, shared, own)
    return count.largest()


class _Traversals:
    """Counts how often autograd traverses the outputs of each module of a model, and of the loss's input.

    A call of a module inside of another module's call belongs to the outermost call, so that a module that
    runs several times in one forward pass counts once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.inside = {id(part): [id(child) for child in part.modules()] for part in model.modules()}
        self.counts: Counter[int] = Counter()
        self.depth = 0

    def largest(self) -> int:
        """The largest count; at least 1, because the outer loop always has a backward pass."""
        return max(1, *self.counts.values()) if self.counts else 1

    def of_loss(self, loss: Loss) -> Loss:
        """The same loss, whose first argument is watched."""

        def watched(output: Any, *targets: Any) -> Tensor:
            self._watch(output, [0])
            return loss(output, *targets)

        return watched

    @contextmanager
    def of_modules(self) -> Iterator[None]:
        """Within this context, the outputs of modules are watched."""

        # For all modules: hooks on the model's own would change which parts of it an engine runs once.
        def enter(module: nn.Module, inputs: Any) -> None:
            self.depth += id(module) in self.inside

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            if id(module) not in self.inside:
                return
            self.depth -= 1
            if self.depth == 0:
                self._watch(output, self.inside[id(module)])

        handles = (
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, output: Any, keys: Iterable[int]) -> None:
        passes: set[int] = set()  # calls of the autograd engine that have reached this output

        def hook(_: Tensor) -> None:
            backward = torch._C._current_graph_task_id()
            if backward not in passes:
                passes.add(backward)
                self.counts.update(keys)

        for leaf in tree_leaves(output):
            for tensor in _levels(leaf):
                if tensor.requires_grad:
                    tensor.register_hook(hook)


def _levels(leaf: Any) -> Iterator[Tensor]:
    """A tensor, and those that transforms of torch.func have wrapped into it."""
    functorch: Any = torch._C._functorch
    while isinstance(leaf, Tensor):
        yield leaf
        if not functorch.is_functorch_wrapped_tensor(leaf):
            return
        leaf = functorch.get_unwrapped(leaf)
