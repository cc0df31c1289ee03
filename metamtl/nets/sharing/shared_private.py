"""Adversarial sharing: a task-invariant shared encoder and a private encoder for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ...episode import Batch, Episode
from ...losses import Loss
from .named import Make, NamedTasks, Outputs, check_names, distinct
from .reversal import reverse_gradient

DISCRIMINATOR, DIFFERENCE = "discriminator", ".difference"


class SharedPrivate(NamedTasks):
    """`output_t = head_t([shared(x), private_t(x)])`, with a discriminator that makes `shared` invariant.

    Liu, Qiu, Huang 2017, https://arxiv.org/abs/1704.05742. The two constraints are additional named tasks,
    so the aggregator also receives their gradients; `constrained` adds them to a dict of episodes:

    - `task="discriminator"`: logits `[B, T]` of the task of an example, computed from the shared features
      with gradient reversal: the discriminator learns to predict the task, the shared encoder to hide it;
    - `task="<name>.difference"`: `shared(x)^T private(x) / B`, `[features, features]`, whose squared norm
      penalizes overlap between the two encoders.

    Differs from the paper in: 1. the norm is that of the mean over the batch instead of the sum, so that it
    does not grow with the batch size.

    Args:
        shared: the shared encoder, `x -> [B, features]`.
        make: builds one private encoder `x -> [B, features]`, with new parameters at each call.
        features: output width of each encoder.
        outputs: for each task the width of its linear head, or a module to use as its head.

    Raises:
        ValueError: a task is named "discriminator", or encoders share parameters.

    >>> def encoder():
    ...     return nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    >>> model = SharedPrivate(encoder(), encoder, features=8, outputs={"books": 2, "films": 2})
    >>> x = torch.zeros(5, 4)
    >>> model(x, task="books").shape, model(x, task="discriminator").shape
    (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    def __init__(self, shared: nn.Module, make: Make, features: int, outputs: Outputs) -> None:
        super().__init__()
        kind = type(self).__name__
        check_names(kind, outputs)
        if DISCRIMINATOR in outputs:
            raise ValueError(f"{kind} uses the name {DISCRIMINATOR!r} itself; give that task another name.")
        encoders = distinct([shared, *(make() for _ in outputs)], f"the encoders of {kind}")
        self.shared = shared
        self.private = nn.ModuleDict(dict(zip(outputs, encoders[1:])))
        self.discriminator = nn.Linear(features, len(outputs))
        self.add_heads(outputs, 2 * features)

    def known(self) -> tuple[str, ...]:
        return (*self.heads, DISCRIMINATOR, *(name + DIFFERENCE for name in self.heads))

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        shared = self.shared(*inputs, **keywords)
        tasks = dict.fromkeys(name.removesuffix(DIFFERENCE) for name in task_names if name != DISCRIMINATOR)
        private = {name: self.private[name](*inputs, **keywords) for name in tasks}

        def one(name: str) -> Tensor:
            if name == DISCRIMINATOR:
                return self.discriminator(reverse_gradient(shared))
            if name.endswith(DIFFERENCE):
                return shared.mT @ private[name.removesuffix(DIFFERENCE)] / len(shared)
            return self.head(name, torch.cat([shared, private[name]], -1))

        return {name: one(name) for name in task_names}

    def constrained(
        self,
        episodes: Mapping[str, Episode],
        loss: Mapping[str, Loss],
        adversarial: float = 0.05,
        difference: float = 0.01,
    ) -> tuple[dict[str, Episode], dict[str, Loss]]:
        """Add episodes and losses of the constraints to those of the tasks.

        `meta_backward(model, recipe, *model.constrained(episodes, loss))` minimizes
        `sum_t L_t + adversarial * L_discriminator + difference * sum_t |shared^T private_t|^2`, or the mean
        of these 2 T + 1 terms, depending on the aggregator. The discriminator receives the query inputs of
        all tasks. The inputs must differ, because it cannot distinguish tasks with the same input.

        Raises:
            ValueError: a task has no head, shares its input with another task, or has an input of another
                shape.
        """
        tasks = list(episodes)
        if len(tasks) < 2 or set(tasks) - set(self.heads):
            raise ValueError(
                f"there are episodes for {tasks}, heads for {list(self.heads)}; the discriminator needs at"
                " least two tasks with heads."
            )
        inputs = [episodes[name].query[0] for name in tasks]
        if len({id(x) for x in inputs}) < len(inputs):
            raise ValueError(
                "two tasks have the same input, so a discriminator cannot distinguish them; give each task"
                " its own data, or use NamedHeads."
            )
        sizes = [len(tree_leaves(x)[0]) for x in inputs]
        device = tree_leaves(inputs[0])[0].device
        positions = [list(self.heads).index(name) for name in tasks]
        labels = torch.tensor(positions).repeat_interleave(torch.tensor(sizes)).to(device)
        constraints = {DISCRIMINATOR: Episode(None, Batch(_together(inputs), labels))}
        losses: dict[str, Loss] = {DISCRIMINATOR: lambda out, y: adversarial * F.cross_entropy(out, y)}
        for name, x, size in zip(tasks, inputs, sizes):
            zeros = torch.zeros(size, device=device)
            constraints[name + DIFFERENCE] = Episode(None, Batch(x, zeros))
            losses[name + DIFFERENCE] = lambda out, y: difference * out.square().sum()
        return {**episodes, **constraints}, {**loss, **losses}


def _together(inputs: list[Any]) -> Any:
    """Concatenate the inputs of all tasks."""
    parts = [tree_flatten(x) for x in inputs]
    shapes = [[leaf.shape[1:] for leaf in leaves] for leaves, _ in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"the tasks' inputs have shapes {[[list(s) for s in shape] for shape in shapes]} after the"
            " batch axis; the discriminator takes them as one batch, so pad or crop them to one shape."
        )
    return tree_unflatten([torch.cat(leaves) for leaves in zip(*(part for part, _ in parts))], parts[0][1])
