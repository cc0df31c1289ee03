"""Objectives, which the outer loop minimizes after the adaptation to a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..episode import Batch
from ..functional import Params
from ..functional.labels import num_labels


@dataclass
class Adaptation:
    """One task after adaptation, the argument of an objective.

    Attributes:
        start: the shared parameters theta, by name.
        end: the adapted parameters phi of the task.
        support: the support set, or None.
        query: the query set.
        measure: `measure(params, batch) -> scalar`, the loss of the task.
        stages: the parameters after 0, 1, ..., K steps, if the objective has `reads = "stages"`.
        adapt: `adapt(theta) -> phi`, the adaptation from other shared parameters, if the objective has
            `reads = "adapter"`; `end` then has no gradient.
        known: the query loss if it has already been computed, else None.
    """

    start: Params
    end: Params
    support: Batch | None
    query: Batch
    measure: Callable[[Params, Batch], Tensor]
    known: Tensor | None = field(default=None, repr=False)
    stages: tuple[Params, ...] = field(default=(), repr=False)
    adapt: Callable[[Params], Params] | None = field(default=None, repr=False)

    @property
    def query_loss(self) -> Tensor:
        """The loss of the adapted parameters on the query set; computed once."""
        # Not functools.cached_property, because torch.compile cannot trace its lock.
        if self.known is None:
            self.known = self.measure(self.end, self.query)
        return self.known


Objective = Callable[[Adaptation], Tensor]
Reads = Literal["end", "stages", "adapter"]


def reads(objective: Objective) -> Reads:
    """What an objective reads of the adaptation: its attribute `reads`, by default only the end."""
    return getattr(objective, "reads", "end")


def query_loss(task: Adaptation) -> Tensor:
    """`L_query(phi)`: the objective of MAML and the default of most recipes."""
    return task.query_loss


def episode_loss(task: Adaptation) -> Tensor:
    """Mean loss over all labels of the episode, `(S L_support(phi) + Q L_query(phi)) / (S + Q)`.

    S and Q are the numbers of labels that are not missing. Use it for adapters that ignore the support set
    (joint and multi-task training), so that they learn from the same labels as a meta-learner. The two sets
    pass through the model separately, as in evaluation. `loss` must be a mean over the labels that are not
    missing, such as torch's cross-entropy and `metamtl.losses.mean_over_labeled`. A support set without
    labels has weight 0. If `y` contains several tensors, the first one contains the labels.
    """
    if task.support is None:
        return task.query_loss
    support, query = Batch(*task.support), Batch(*task.query)
    counts = [num_labels(batch) for batch in (support, query)]
    # Without labels the mean is 0 / 0, and its gradient is NaN even at weight 0, so labels are set to 0.
    empty = counts[0] == 0
    y = tree_map(lambda leaf: _zeros_if(empty, leaf), support.y)
    losses = task.measure(task.end, Batch(support.x, y)), task.query_loss
    dtype = torch.promote_types(losses[1].dtype, torch.float32)
    first, second = (count.to(dtype) for count in counts)
    return ((first * losses[0] + second * losses[1]) / (first + second)).to(losses[1].dtype)


def _zeros_if(condition: Tensor, y: Any) -> Any:
    return torch.where(condition, torch.zeros_like(y), y) if isinstance(y, Tensor) else y


def displacement(task: Adaptation) -> Tensor:
    """`1/2 |theta - phi|^2` with constant phi; its gradient is that of Reptile, `theta - phi`.

    Nichol, Achiam, Schulman 2018, https://arxiv.org/abs/1803.02999.
    """
    gaps = [(start - task.end[name].detach()) for name, start in task.start.items()]
    return 0.5 * torch.stack([gap.square().sum() for gap in gaps]).sum()
