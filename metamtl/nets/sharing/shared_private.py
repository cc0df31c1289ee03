"""Adversarial sharing: a shared encoder that hides the task, and a private one for each task."""

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
    """`output_t = head_t([shared(x), private_t(x)])`; a discriminator keeps the task out of `shared`.

    Liu, Qiu, Huang 2017, https://arxiv.org/abs/1704.05742. Its two constraints are named tasks of their
    own, whose rows go to the aggregator beside the others'; `constrained` adds them to a dict of episodes:

    - `task="discriminator"`: logits `[B, T]` of which task an example is of, read from the shared features
      through a gradient reversal: the discriminator learns to tell, the shared encoder to hide it;
    - `task="<name>.difference"`: `shared(x)^T private(x) / B`, `[features, features]`, whose squared norm
      keeps the two apart.

    Differs from the paper in: 1. the norm is of the mean over the batch rather than of its sum, so that it
    does not grow with the batch.

    Args:
        shared: the shared encoder, `x -> [B, features]`.
        make: builds one private encoder `x -> [B, features]`, with parameters of its own at each call.
        features: width of what each encoder returns.
        outputs: for each task the width of its linear head, or a module that is its head.

    Raises:
        ValueError: a task named "discriminator"; encoders that share parameters.

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
            raise ValueError(f"{kind} answers to {DISCRIMINATOR!r} itself; give that task another name.")
        encoders = distinct([shared, *(make() for _ in outputs)], f"the encoders of {kind}")
        self.shared = shared
        self.private = nn.ModuleDict(dict(zip(outputs, encoders[1:])))
        self.discriminator = nn.Linear(features, len(outputs))
        self.add_heads(outputs, 2 * features)

    def known(self) -> tuple[str, ...]:
        return (*self.heads, DISCRIMINATOR, *(name + DIFFERENCE for name in self.heads))

    def answer(self, wanted: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        shared = self.shared(*inputs, **keywords)
        tasks = dict.fromkeys(name.removesuffix(DIFFERENCE) for name in wanted if name != DISCRIMINATOR)
        private = {name: self.private[name](*inputs, **keywords) for name in tasks}

        def one(name: str) -> Tensor:
            if name == DISCRIMINATOR:
                return self.discriminator(reverse_gradient(shared))
            if name.endswith(DIFFERENCE):
                return shared.mT @ private[name.removesuffix(DIFFERENCE)] / len(shared)
            return self.head(name, torch.cat([shared, private[name]], -1))

        return {name: one(name) for name in wanted}

    def constrained(
        self,
        episodes: Mapping[str, Episode],
        loss: Mapping[str, Loss],
        adversarial: float = 0.05,
        difference: float = 0.01,
    ) -> tuple[dict[str, Episode], dict[str, Loss]]:
        """The episodes and losses of the tasks, and those of the constraints beside them.

        `meta_backward(model, recipe, *model.constrained(episodes, loss))` minimises
        `sum_t L_t + adversarial * L_discriminator + difference * sum_t |shared^T private_t|^2`, or its mean
        over these 2 T + 1 rows, as the aggregator says. The discriminator sees the query inputs of all the
        tasks, which must differ: tasks with one input cannot be told apart by it.

        Raises:
            ValueError: a task without a head, or whose input is another's too or does not go with it.
        """
        tasks = list(episodes)
        if len(tasks) < 2 or set(tasks) - set(self.heads):
            raise ValueError(
                f"episodes are there for {tasks}, heads for {list(self.heads)}; the discriminator needs at"
                " least two tasks with heads to tell apart."
            )
        inputs = [episodes[name].query[0] for name in tasks]
        if len({id(x) for x in inputs}) < len(inputs):
            raise ValueError(
                "two tasks have one and the same input, by which a discriminator cannot tell them apart;"
                " give each task its own data, or share with NamedHeads."
            )
        sizes = [len(tree_leaves(x)[0]) for x in inputs]
        device = tree_leaves(inputs[0])[0].device
        positions = [list(self.heads).index(name) for name in tasks]
        which = torch.tensor(positions).repeat_interleave(torch.tensor(sizes)).to(device)
        more = {DISCRIMINATOR: Episode(None, Batch(_together(inputs), which))}
        losses: dict[str, Loss] = {DISCRIMINATOR: lambda out, y: adversarial * F.cross_entropy(out, y)}
        for name, x, size in zip(tasks, inputs, sizes):
            nothing = torch.zeros(size, device=device)
            more[name + DIFFERENCE] = Episode(None, Batch(x, nothing))
            losses[name + DIFFERENCE] = lambda out, y: difference * out.square().sum()
        return {**episodes, **more}, {**loss, **losses}


def _together(inputs: list[Any]) -> Any:
    """The inputs of all the tasks, one after the other."""
    parts = [tree_flatten(x) for x in inputs]
    shapes = [[leaf.shape[1:] for leaf in leaves] for leaves, _ in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"the tasks' inputs have shapes {[[list(s) for s in shape] for shape in shapes]} behind the"
            " batch axis; the discriminator takes them as one batch, so pad or crop them to one shape."
        )
    return tree_unflatten([torch.cat(leaves) for leaves in zip(*(part for part, _ in parts))], parts[0][1])
